"""Weights in eight bits: what is stored, how well, that all commands read it, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import resnet50

from export.tables import bottleneck_sha256
from training import shrink
from training.checkpoint import (
    BackboneError,
    load_model,
    save_model,
    save_state,
    start_from_checkpoint,
)
from training.models import build_model, build_random_model
from training.teachers import load_teacher
from training.weights import EightBitsError, EightBitsVersionError, read_metadata, read_state_dict

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """ours_n0 with random weights and two classes, as it is saved, and with its tail shrunk."""
    folder = tmp_path_factory.mktemp("pair")
    about = {"model": "ours_n0", "lmb": "0.5", "labels": '["dark", "light"]'}
    save_model(folder / "whole.safetensors", build_random_model("ours_n0", 2), about)
    files = folder / "whole.safetensors", folder / "small.safetensors"
    assert shrink.main([str(files[0]), "--out", str(files[1])]) == 0
    return files


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher of two classes with random weights, as it is saved, and shrunk."""
    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    state = resnet50(weights=None, num_classes=2).state_dict()
    files = folder / "whole" / "teacher.safetensors", folder / "small" / "teacher.safetensors"
    save_state(files[0], state, {"labels": '["dark", "light"]'})
    assert shrink.main([str(files[0]), "--out", str(files[1])]) == 0
    return files


def test_a_row_is_within_half_a_step_of_its_values() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 3, 3) * torch.tensor([1e-6, 1, 30, 1e30, 0]).reshape(5, 1, 1, 1)
    values, scale = shrink.to_eight_bits(weight)
    assert (values.dtype, values.shape) == (torch.int8, weight.shape)
    assert (scale.dtype, scale.shape) == (torch.float32, (5,))
    assert (scale > 0).all()
    assert int(values.min()) >= -127
    step = scale.reshape(5, 1, 1, 1)
    assert ((values.float() * step - weight).abs() <= step * 0.5001).all()
    assert values.abs().amax((1, 2, 3)).tolist() == [127, 127, 127, 127, 0]


def test_the_tail_is_stored_in_eight_bits_and_all_else_as_it_was(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, small = (load_file(file) for file in pair)
    assert pair[1].stat().st_size < 0.58 * pair[0].stat().st_size
    for key, value in whole.items():
        if key.startswith("bottleneck_layer.") or value.ndim < 2:
            assert small[key].dtype == value.dtype
            assert torch.equal(small[key], value), key
        else:
            assert small[key].dtype == torch.int8
            assert small[f"{key}_scale"].shape == value.shape[:1]
    assert len(small) == len(whole) + sum(value.dtype == torch.int8 for value in small.values())
    with safe_open(pair[1], "pt") as file:
        assert file.metadata()["eight_bits"] == "1"
    # Shrunk once more from what was read, it is the same.
    model, about = load_model(pair[1], "ours_n0")
    save_file(model.state_dict(), tmp_path / "again.safetensors", about)
    assert (
        shrink.main([str(tmp_path / "again.safetensors"), "--out", str(tmp_path / "o.safetensors")])
        == 0
    )
    again = load_file(tmp_path / "o.safetensors")
    for key, value in small.items():
        if value.dtype == torch.int8:
            assert torch.equal(again[key], value), key


def test_the_bottleneck_and_its_fingerprint_stay(pair: tuple[Path, Path]) -> None:
    (whole, about), (small, small_about) = (load_model(file, "ours_n0") for file in pair)
    assert bottleneck_sha256(small) == bottleneck_sha256(whole)
    assert small_about == about
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = whole(image), small(image)
    assert torch.equal(ours.features[0], theirs.features[0])
    assert not torch.equal(ours.logits, theirs.logits)
    assert torch.allclose(
        ours.logits, theirs.logits, rtol=0.05, atol=0.05 * float(ours.logits.std())
    )


def test_with_the_bottleneck_it_is_another_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "all.safetensors"
    assert shrink.main([str(pair[0]), "--bottleneck", "--out", str(out)]) == 0
    assert out.stat().st_size < pair[1].stat().st_size
    stored = load_file(out)
    assert stored["bottleneck_layer.encoder.0.weight"].dtype == torch.int8
    assert not any("entropy" in key for key, value in stored.items() if value.dtype == torch.int8)
    whole, all_small = (load_model(file, "ours_n0")[0] for file in (pair[0], out))
    assert bottleneck_sha256(all_small) != bottleneck_sha256(whole)


def test_every_way_to_load_takes_it(
    pair: tuple[Path, Path], teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    small = read_state_dict(pair[1])[0]
    begun = build_model("ours_n0", 2)
    start_from_checkpoint(begun, pair[1])
    assert torch.equal(begun.tail.fc.weight, small["fc.weight"])
    assert small["fc.weight"].dtype == torch.float32
    teacher = load_teacher(teachers[1])
    assert teacher.labels == ["dark", "light"]
    before = load_teacher(teachers[0]).backbone.state_dict()
    for key, value in teacher.backbone.state_dict().items():
        step = float(before[key].abs().max()) / 127
        assert torch.allclose(value, before[key], rtol=0, atol=0.51 * step), key


def test_a_bottleneck_takes_its_tail_in_eight_bits_and_no_other(
    teachers: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    model = build_random_model("ours_n0_enc", 2)
    tail = load_teacher(teachers[0]).backbone.state_dict()
    model.tail.load_state_dict({key: tail[key] for key in model.tail.state_dict()})
    file = tmp_path / "lmb1.safetensors"
    save_model(file, model, {}, "teacher.safetensors")
    for teacher in teachers:
        found = load_model(file, "ours_n0_enc", teacher)[0].state_dict()
        own = read_state_dict(teacher)[0]["layer3.1.conv2.weight"].float()
        assert torch.equal(found["layer3.1.conv2.weight"], own)
    # The digest is that of the file in eight bits only: one that was saved anew has its own.
    state, about = read_state_dict(teachers[1])
    assert about == {"labels": '["dark", "light"]'}
    save_state(tmp_path / "anew.safetensors", state, about)
    digest = {"tail_sha256": read_metadata(teachers[1])["tail_sha256"]}
    save_state(tmp_path / "claims.safetensors", state, about | digest)
    for name in ("anew", "claims"):
        with pytest.raises(BackboneError, match="another backbone"):
            load_model(file, "ours_n0_enc", tmp_path / f"{name}.safetensors")
    # A bottleneck of the tail in eight bits is of that tail.
    model.tail.load_state_dict({key: state[key] for key in model.tail.state_dict()})
    save_model(file, model, {}, "teacher.safetensors")
    load_model(file, "ours_n0_enc", teachers[1])
    with pytest.raises(BackboneError, match="another backbone"):
        load_model(file, "ours_n0_enc", teachers[0])
    assert shrink.main([str(file), "--out", str(tmp_path / "o.safetensors")]) == 1
    assert "has no tail, only a bottleneck: shrink its backbone's file" in capsys.readouterr().err


def _without(key: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(key)


def _with(key: str, value: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.update({key: value})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_without("fc.weight_scale"), "fc.weight_scale is missing beside fc.weight"),
        (_with("fc.weight_scale", torch.ones(2).half()), "fc.weight_scale is float16, not float32"),
        (_with("fc.weight_scale", torch.ones(3)), r"is \[3\], and fc.weight is \[2, 4\]"),
        (_with("fc.weight_scale", torch.ones(2, 1)), r"is \[2, 1\], and fc.weight is"),
        (_with("fc.weight_scale", torch.tensor([1.0, 0])), "has a value that is not above 0"),
        (_with("fc.weight_scale", torch.tensor([1.0, -1])), "has a value that is not above 0"),
        (_with("fc.weight_scale", torch.tensor([1, torch.nan])), "or not finite"),
        (_with("fc.weight_scale", torch.tensor([1, torch.inf])), "or not finite"),
        (_with("fc.weight_scale", torch.ones(2, dtype=torch.int8)), "weight_scale"),
        (_with("fc.weight", torch.tensor(3, dtype=torch.int8)), r"and fc.weight is \[\]"),
    ],
)
def test_scales_that_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], text: str
) -> None:
    state = {"fc.weight": torch.ones(2, 4, dtype=torch.int8), "fc.bias": torch.zeros(2)}
    state["fc.weight_scale"] = torch.tensor([0.5, 2.0])
    file = tmp_path / "file.safetensors"
    save_file(state, file, {"eight_bits": "1", "tail_sha256": "0", "lmb": "1"})
    found, about = read_state_dict(file)
    assert found.keys() == {"fc.weight", "fc.bias"}
    assert found["fc.weight"].tolist() == [[0.5] * 4, [2.0] * 4]
    assert about == {"lmb": "1"}
    change(state)
    save_file(state, file, {"eight_bits": "1"})
    with pytest.raises(EightBitsError, match=text):
        read_state_dict(file)


def test_a_later_layout_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.safetensors"
    save_file({"fc.bias": torch.zeros(2)}, file, {"eight_bits": "2"})
    with pytest.raises(
        EightBitsVersionError, match="in layout '2', and this release reads layout 1"
    ):
        read_state_dict(file)
    # Without the metadata, int8 tensors are no weights, and a scale is a tensor like others.
    save_file({"a": torch.zeros(2, dtype=torch.int8), "a_scale": torch.ones(2)}, file)
    assert read_state_dict(file)[0].keys() == {"a", "a_scale"}


def test_what_cannot_be_shrunk_is_refused_and_nothing_is_written(
    pair: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    broken = tmp_path / "broken.safetensors"
    save_file({"fc.weight": torch.full((2, 2), torch.nan)}, broken)
    out = tmp_path / "out.safetensors"
    for file, where, text in (
        (pair[1], out, "already stores weights in eight bits"),
        (broken, out, "fc.weight holds values that are not finite: nothing was written"),
        (Path("/nowhere.pt"), out, "no checkpoint at /nowhere.pt"),
        (pair[0], tmp_path / "out.pt", "name a file that ends in .safetensors"),
        (pair[0], pair[0], "would replace the input"),
    ):
        assert shrink.main([str(file), "--out", str(where)]) == 1
        assert text in capsys.readouterr().err
    assert not out.exists()


def test_a_file_of_torch_save_is_shrunk_with_its_labels(tmp_path: Path, capsys: Capture) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 400)
    state = {"module.fc.weight": weight, "module.fc.bias": torch.zeros(3)}
    torch.save({"model": state, "classes": ["a", "b", "c"]}, tmp_path / "file.pt")
    out = tmp_path / "out.safetensors"
    assert shrink.main([str(tmp_path / "file.pt"), "--out", str(out)]) == 0
    assert f"wrote {out}, {out.stat().st_size:,} bytes instead of" in capsys.readouterr().out
    found, about = read_state_dict(out)
    assert json.loads(about["labels"]) == ["a", "b", "c"]
    assert torch.allclose(found["fc.weight"], weight, atol=0.02)


def test_a_model_takes_the_tail_of_another_file(
    pair: tuple[Path, Path], teachers: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "ours_n0").mkdir()
    (tmp_path / "teacher.safetensors").write_bytes(teachers[1].read_bytes())
    alone = tmp_path / "ours_n0" / "lmb0.5.safetensors"
    whole, about = load_model(pair[0], "ours_n0")
    # A tail in eight bits is left out as another is, and a bottleneck alone gets its new tail.
    for file in (*pair, alone):
        assert shrink.main([str(file), "--backbone", str(teachers[1]), "--out", str(alone)]) == (
            1 if file == alone else 0
        )
    assert "would replace the input" in capsys.readouterr().err
    assert alone.stat().st_size < 0.3 * pair[1].stat().st_size
    found, named = load_model(alone, "ours_n0")
    assert bottleneck_sha256(found) == bottleneck_sha256(whole)
    assert {key: named[key] for key in about} == about
    tail = read_state_dict(teachers[1])[0]
    assert torch.equal(found.tail.fc.weight, tail["fc.weight"])
    again = tmp_path / "again.safetensors"
    assert shrink.main([str(alone), "--backbone", str(teachers[0]), "--out", str(again)]) == 0
    assert torch.equal(
        load_model(again, "ours_n0", teachers[0])[0].tail.fc.weight,
        read_state_dict(teachers[0])[0]["fc.weight"].float(),
    )
    with pytest.raises(BackboneError, match="another backbone"):
        load_model(alone, "ours_n0", teachers[0])


def test_a_tail_that_does_not_fit_is_refused(
    pair: tuple[Path, Path], teachers: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    state, _ = read_state_dict(teachers[0])
    turned, three = tmp_path / "turned.safetensors", tmp_path / "three.safetensors"
    save_state(turned, state, {"labels": '["light", "dark"]'})
    save_state(three, state | {"fc.weight": torch.ones(3, 2048), "fc.bias": torch.ones(3)}, {})
    other = tmp_path / "other.safetensors"
    whole, about = read_state_dict(pair[0])
    save_file(whole | {"blocks.0.weight": torch.ones(2)}, other)
    # A bottleneck alone has no classifier, and is known by its labels.
    alone, part = tmp_path / "alone.safetensors", tmp_path / "part.safetensors"
    save_file({key: value for key, value in whole.items() if "bottleneck" in key}, alone, about)
    save_file({"fc.weight": torch.ones(2, 2048), "fc.bias": torch.ones(2)}, part)
    out = tmp_path / "out.safetensors"
    for file, backbone, more, text in (
        (pair[0], turned, [], "has other classes than"),
        (pair[0], three, [], "has 2 classes, and"),
        (alone, three, [], "has 2 classes, and"),
        (pair[0], part, [], "does not fit the model"),
        (other, teachers[0], [], "a tail of another network than"),
        (teachers[0], teachers[1], [], "has no bottleneck"),
        (pair[0], pair[0], [], "would replace the input"),
        (pair[0], teachers[0], ["--bottleneck"], "leave out --bottleneck"),
        (pair[0], Path("/nowhere.pt"), [], "no checkpoint at /nowhere.pt"),
    ):
        where = backbone if text == "would replace the input" else out
        command = [str(file), "--backbone", str(backbone), "--out", str(where), *more]
        assert shrink.main(command) == 1
        assert text in capsys.readouterr().err
    assert not out.exists()
