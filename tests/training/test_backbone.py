"""training.backbone: a ResNet-50 for own images, from scratch or fine-tuned, teaches a model."""

from pathlib import Path

import pytest
import torch
from torchvision.models import resnet50
from training_runs import options, picture, read_log, spoil

from training import backbone, train
from training.checkpoint import save_model, save_state
from training.folders import class_folder
from training.labelled import Data
from training.models import build_random_model
from training.shared_tail import FrozenStart
from training.teachers import load_teacher
from training.weights import read_state_dict

LITE2 = Path(__file__).parents[2] / "checkpoints" / "n4_lite2" / "lmb0.65.safetensors"


@pytest.mark.slow
def test_a_backbone_of_ones_own_teaches_a_model(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(folder: str, *more: str) -> int:
        return backbone.main(
            ["--data", str(data), "--smoke", "--run_dir", str(tmp_path / folder), *more]
        )

    assert make("first") == 0
    out = tmp_path / "first" / "resnet50.safetensors"
    assert f"wrote {out}" in capsys.readouterr().out
    assert load_teacher(out).classes == 2
    assert (tmp_path / "first" / "log.png").read_bytes().startswith(b"\x89PNG")
    three = tmp_path / "three.safetensors"
    save_state(three, resnet50(weights=None, num_classes=3).state_dict(), {})
    assert make("fine_tuned", "--pretrain", str(three), "--lr", "0") == 0
    tuned, begin = (
        load_teacher(tmp_path / "fine_tuned" / "resnet50.safetensors").backbone,
        load_teacher(three).backbone,
    )
    assert torch.equal(tuned.conv1.weight, begin.conv1.weight)
    assert tuned.fc.out_features == 2
    assert make("none", "--pretrain", "/nowhere.pt") == 1
    assert "/nowhere.pt" in capsys.readouterr().err
    assert train.main(options(data, out, tmp_path / "model", "--smoke")) == 0
    (record,) = read_log(tmp_path / "model")
    assert record["size"] == 64


@pytest.mark.parametrize(
    ("more", "lr"),
    [([], 2e-3), (["--pretrain", "FILE"], 2e-4), (["--lr", "3"], 3), (["--lr", "0"], 0)],
)
def test_a_backbones_optimizer_decays_its_weights_alone(more: list[str], lr: float) -> None:
    net = resnet50(num_classes=2)
    args = backbone._parser().parse_args(["--data", "x", "--wdecay", "0.01", *more])
    optimizer = backbone._optimizer(net, args)
    decayed, others = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (decayed["weight_decay"], others["weight_decay"], decayed["lr"], others["lr"]) == (
        0.01,
        0,
        lr,
        lr,
    )
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in others["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(list(net.parameters()))


def test_a_run_names_the_damaged_image_or_counts_it(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(root)
    command = ["--data", str(root), "--smoke", "--run_dir", str(tmp_path / "run")]
    assert backbone.main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith("training.backbone: ")
    assert "dog" in err
    assert "--skip_damaged" in err
    assert backbone.main([*command, "--skip_damaged"]) == 0
    (record,) = read_log(tmp_path / "run")
    assert record["left_out"] in (2, 3)
    assert "damaged images were left out" in capsys.readouterr().err


def test_data_that_cannot_be_trained_on_is_refused_before_a_model_is_made(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one" / "images").mkdir(parents=True)
    picture(tmp_path / "one" / "images" / "cat" / "a.png")
    for more, text in (
        (["--data", str(tmp_path / "one")], "two classes or more"),
        (["--data", str(root), "--held_out", "10"], "give --held_out a number under 10"),
        (
            ["--data", str(root), "--held_out", "2", "--batch_size", "9"],
            "8 images do not fill one batch of 9: give a smaller --batch_size",
        ),
        (["--data", str(tmp_path / "nowhere")], "does not exist"),
        (["--data", str(root), "--device", "meta"], "choose cpu or cuda"),
    ):
        assert backbone.main([*more, "--run_dir", str(tmp_path / "run")]) == 1
        assert text in capsys.readouterr().err


def test_nothing_need_be_held_out(root: Path, tmp_path: Path) -> None:
    run = [
        "--run_dir",
        str(tmp_path / "run"),
        "--batch_size",
        "4",
        "--train_size",
        "32:1",
        "--held_out",
        "0",
        "-w",
        "0",
        "--fixseed",
    ]
    assert backbone.main(["--data", str(root), *run, "--lr_sched", "cosine"]) == 0
    (record,) = read_log(tmp_path / "run")
    assert "held_out_top1" not in record


def test_a_fine_tuned_backbone_keeps_the_order_of_its_classes(root: Path) -> None:
    found = class_folder(root)
    start = root.parent / "start.safetensors"
    save_state(
        start,
        backbone._start(None, Data(root, found.files, found.names, False))[0].state_dict(),
        {"labels": '["dog", "cat"]'},
    )
    assert backbone._start(str(start), Data(root, found.files, found.names, False))[1].labels == [
        "dog",
        "cat",
    ]
    save_state(
        start,
        backbone._start(None, Data(root, found.files, found.names, False))[0].state_dict(),
        {"labels": '["cow", "hen"]'},
    )
    assert backbone._start(str(start), Data(root, found.files, found.names, False))[1].labels == [
        "cat",
        "dog",
    ]


@pytest.fixture
def start(root: Path) -> Path:
    """A ResNet-50 of root's classes with RANDOM weights."""
    file = root.parent / "start.safetensors"
    torch.manual_seed(0)
    save_state(file, resnet50(weights=None, num_classes=2).state_dict(), {})
    return file


def test_a_frozen_start_stays_and_the_tail_learns_behind_bottlenecks(
    root: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in ("ours_n0", "ours_n4_vr")]
    for file in files:
        save_model(file, build_random_model(file.stem, 2), {"model": file.stem})
    run = ["--data", str(root), "--pretrain", str(start), "--smoke", "--run_dir"]
    serve = ["--frozen_start", "--behind", *map(str, files), "--decoded", "1"]
    assert backbone.main([*run, str(tmp_path / "run"), *serve, "--ema"]) == 0
    (record,) = read_log(tmp_path / "run")
    assert {"held_out_top1", "held_out_top1_behind_1", "held_out_top1_behind_2"} <= record.keys()
    before = read_state_dict(start)[0]
    after = read_state_dict(tmp_path / "run" / "resnet50.safetensors")[0]
    assert before.keys() == after.keys()
    frozen = ("conv1.", "bn1.", "layer1.")
    for key, value in before.items():
        same = torch.equal(value.half(), after[key].half())
        assert same or not key.startswith(frozen), key
    assert not torch.equal(before["layer2.0.conv1.weight"], after["layer2.0.conv1.weight"])
    # Its bottlenecks belong to what the run is.
    save_model(files[0], build_random_model("ours_n0", 2, seed=1), {"model": "ours_n0"})
    assert backbone.main([*run, str(tmp_path / "run"), *serve, "--ema"]) == 1
    assert "behind sha256" in capsys.readouterr().err


def test_part_of_the_features_are_a_bottlenecks(root: Path) -> None:
    net = FrozenStart(2).train()
    bottleneck = build_random_model("ours_n0", 2).bottleneck_layer
    net.behind, net.share = [bottleneck], 0.25
    seen = []
    net.layer2.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    image = torch.randn(4, 3, 32, 32)
    net(image)
    start = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1)
    with torch.no_grad():
        decoded, features = bottleneck.decode(bottleneck.symbols(image)), start(image)
        assert torch.allclose(seen[0], torch.cat([decoded[:1], features[1:]]), atol=1e-4)
        net.eval()(image)
        assert torch.allclose(seen[1], features, atol=1e-4)
        net.train().share = 0
        net(image)
        assert torch.allclose(seen.pop(), features, atol=1e-4)
        net.eval().through(bottleneck)(image)
        assert torch.allclose(seen[2], decoded, atol=1e-4)
    assert not net.conv1.weight.requires_grad
    assert not any("behind" in key for key in net.state_dict())


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--frozen_start"], "--frozen_start keeps layers of --pretrain"),
        (["--behind", "x.safetensors"], "give --frozen_start"),
        (["--decoded", "0.5"], "--decoded is for bottlenecks"),
        (["START", "--behind", "/nowhere.pt"], "no checkpoint at /nowhere.pt"),
        (["START", "--behind", "own", "--out", "own"], "would replace the input"),
        (["START", "--behind", "START"], "does not say which model it is of"),
        (["START", "--behind", str(LITE2)], "has another backbone than ResNet-50 cut at layer1"),
    ],
)
def test_refused_bottlenecks(
    root: Path,
    start: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    text: str,
) -> None:
    own = tmp_path / "own.safetensors"
    save_model(own, build_random_model("ours_n0", 2), {"model": "ours_n0"})
    files = {"own": str(own), "START": str(start)}
    given = [files.get(one, one) for one in more]
    if more[0] == "START":
        given = ["--frozen_start", "--pretrain", *given]
    run = ["--data", str(root), "--smoke", "--run_dir", str(tmp_path / "run")]
    assert backbone.main([*run, *given]) == 1
    assert text in capsys.readouterr().err
