"""Checkpoints: every form of file loads for every model, with old and new names of the entropy
parameters; keys that do not fit are refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from training import checkpoint as ck
from training.backbones import RESNET50
from training.models import MODELS, UnknownModelError, build_model, build_random_model, model_spec
from training.weights import UnreadableCheckpointError

ENTROPY = "bottleneck_layer.entropy_bottleneck."
BUFFERS = {
    ENTROPY + "_offset": torch.full((64,), -10, dtype=torch.int32),
    ENTROPY + "_quantized_cdf": torch.zeros(64, 23, dtype=torch.int32),
    ENTROPY + "_cdf_length": torch.full((64,), 23, dtype=torch.int32),
}


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As CompressAI 1.2.2 and earlier named the entropy parameters."""
    out = {}
    for key, value in state.items():
        for new, old in (("matrices.", "_matrix"), ("biases.", "_bias"), ("factors.", "_factor")):
            if key.startswith(ENTROPY + new):
                key = ENTROPY + old + key.removeprefix(ENTROPY + new)
        out[key] = value
    return out


def is_as_built(loaded: torch.nn.Module, state: dict[str, Tensor]) -> bool:
    own = loaded.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items() if key not in BUFFERS)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """ours_n0 with ten classes, without the table buffers."""
    return {
        key: value
        for key, value in build_random_model("ours_n0", 10).state_dict().items()
        if key not in ck.TABLE_BUFFERS
    }


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("names", [dict, old_names])
@pytest.mark.parametrize("form", ["model.pt", "bare.pt", "state_dict.pth", "model.safetensors"])
def test_every_form_of_file(
    state: dict[str, Tensor], tmp_path: Path, form: str, names, buffers: bool
) -> None:
    content = names(state) | (BUFFERS if buffers else {})
    path = tmp_path / form
    if form.endswith("safetensors"):
        save_file(content, path)
    else:
        torch.save(
            {"model.pt": {"model": content, "epoch": 3}, "bare.pt": content}.get(
                form, {"state_dict": content, "classes": ["a", "b"]}
            ),
            path,
        )
    model, metadata = ck.load_model(path, "ours_n0")
    assert is_as_built(model, state)
    assert not model.training
    assert model.classes == 10
    assert metadata.get("labels") == ('["a", "b"]' if form == "state_dict.pth" else None)


PUBLISHED = [
    name for name, spec in MODELS.items() if spec.backbone == RESNET50 and not spec.variable_rate
]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("names", "buffers"), [(dict, True), (old_names, False)])
def test_the_published_files_of_every_model(
    shared: Path, tmp_path: Path, name: str, names, buffers: bool
) -> None:
    """Files built from the published checkpoints' keys and shapes, 1000 classes, random values."""
    facts = json.loads((shared / "reference" / "state_dicts.json").read_text())
    keys = facts["bottleneck"][facts["same_keys"].get(name, name)] | facts["tail_shared_by_all"]
    torch.manual_seed(0)
    state = {
        key: torch.rand(shape).mul(8).to(getattr(torch, dtype))
        for key, (shape, dtype) in keys.items()
    }
    kept = {key: value for key, value in state.items() if buffers or key not in ck.TABLE_BUFFERS}
    torch.save({"model": names(kept)}, tmp_path / "published.pt")
    model, _ = ck.load_model(tmp_path / "published.pt", name)
    assert is_as_built(model, kept)
    assert model.classes == 1000


def test_ours_survives_its_file(tmp_path: Path) -> None:
    model = build_random_model("ours_n0", 10)
    ck.save_model(tmp_path / "a.safetensors", model, {"model": "ours_n0", "labels": '["x"]'})
    loaded, metadata = ck.load_model(tmp_path / "a.safetensors", "ours_n0")
    assert metadata == {"model": "ours_n0", "labels": '["x"]'}
    for key, value in loaded.state_dict().items():
        original = model.state_dict()[key]
        if key not in ck.TABLE_BUFFERS:
            assert torch.equal(
                value,
                original.half().float()
                if value.ndim in (2, 4) and not key.startswith(ENTROPY)
                else original,
            )
    # What is read from fp16 is written to the same fp16.
    ck.save_model(tmp_path / "b.safetensors", loaded, {"model": "ours_n0", "labels": '["x"]'})
    ours, again = (
        ck.read_state_dict(tmp_path / name)[0] for name in ("a.safetensors", "b.safetensors")
    )
    assert all(torch.equal(ours[key], again[key]) for key in ours)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    "name", ["ours_n4", "ours_n0_enc", "ours_n4_enc", "ours_n8_enc", "matsubara2022wacv"]
)
def test_the_kept_checkpoints_load(name: str) -> None:
    path = Path(__file__).resolve().parents[2] / "checkpoints" / name / "lmb1.28.safetensors"
    model, metadata = ck.load_model(path, name)
    assert metadata["model"] == name
    assert metadata["lmb"] == "1.28"
    assert len(json.loads(metadata["labels"])) == model.classes == 10
    # The default is whole; the others share a backbone.
    assert path.stat().st_size < (60e6 if name == "ours_n4" else 9e6)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("layer3.2.bn1.running_var"), "missing: layer3.2.bn1.running_var"),
        (lambda s: s.update({"layer9.weight": torch.zeros(1)}), "extra: layer9.weight"),
        (
            lambda s: s.update({"layer2.0.bn1.bias": torch.zeros(7)}),
            r"misshaped: layer2.0.bn1.bias is \[7\], the model has \[128\]",
        ),
        (lambda s: s.pop("fc.weight"), "fc.weight"),
        (
            lambda s: s.update({"fc.weight": torch.zeros(10, 100)}),
            r"fc.weight is \[10, 100\], the tail has 2048",
        ),
        (lambda s: s.update({"fc.weight": torch.zeros(0, 2048)}), "fc.weight"),
        (
            lambda s: s.update({"fc.bias": torch.zeros(9)}),
            r"misshaped: fc.bias is \[9\], the model has \[10\]",
        ),
    ],
)
def test_keys_that_do_not_fit_are_refused_by_name(
    state: dict[str, Tensor], tmp_path: Path, change, text: str
) -> None:
    content = dict(state)
    change(content)
    save_file(content, tmp_path / "odd.safetensors")
    with pytest.raises(ck.CheckpointKeysError, match=text):
        ck.load_model(tmp_path / "odd.safetensors", "ours_n0")


def test_another_models_checkpoint_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "n0.safetensors")
    with pytest.raises(
        ck.CheckpointKeysError,
        match=r"missing: bottleneck_layer\.encoder\.1\.conv_1(.|\n)*and \d+ more",
    ):
        ck.load_model(tmp_path / "n0.safetensors", "ours_n8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(
    state: dict[str, Tensor], tmp_path: Path, value: float
) -> None:
    save_file(
        state | {"layer2.0.bn1.bias": torch.full((128,), value)}, tmp_path / "nan.safetensors"
    )
    with pytest.raises(ck.NonFiniteCheckpointError, match=r"layer2\.0\.bn1\.bias"):
        ck.load_model(tmp_path / "nan.safetensors", "ours_n0")


def test_a_weight_that_float16_cannot_hold_is_not_written(tmp_path: Path) -> None:
    model = build_random_model("ours_n0", 10)
    with torch.no_grad():
        model.tail.fc.weight[0, 0] = 1e6
    with pytest.raises(ck.NonFiniteCheckpointError, match=r"fc\.weight"):
        ck.save_model(tmp_path / "big.safetensors", model, {})
    assert list(tmp_path.iterdir()) == []


class Payload:
    """What a hostile pickle would run."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.pt", b""), ("x.pt", b"noise"), ("x.safetensors", b""), ("x.safetensors", b"\xff" * 64)],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableCheckpointError, match=name):
        ck.load_model(tmp_path / name, "ours_n0")


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Payload()}, "hostile.pt")
    with pytest.raises(UnreadableCheckpointError, match="weights_only"):
        ck.load_model("hostile.pt", "ours_n0")
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [[1, 2], {"model": [1]}, {"model": {"fc.weight": "text"}}])
def test_a_file_without_a_state_dict(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(UnreadableCheckpointError, match="no state_dict"):
        ck.load_model(tmp_path / "odd.pt", "ours_n0")


def test_no_file_and_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        ck.load_model(tmp_path / "missing.pt", "ours_n0")
    with pytest.raises(UnknownModelError, match="ours_n4"):
        model_spec("ours_n5")
    with pytest.raises(UnknownModelError, match="matsubara2022wacv"):
        ck.load_model(tmp_path / "missing.pt", "resnet")


def test_a_frozen_tail_stays_in_eval_mode_and_has_no_gradient() -> None:
    model = build_model("ours_n0_enc", 10).train()
    assert not any(module.training for module in model.tail.layer3.modules())
    assert model.bottleneck_layer.training
    assert not any(parameter.requires_grad for parameter in model.tail.fc.parameters())
    assert all(
        parameter.requires_grad for parameter in build_model("ours_n0", 10).tail.fc.parameters()
    )
