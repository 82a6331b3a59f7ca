"""Variable-rate models: gains, the rate's estimate, where training starts, and a whole run.

Over 400 lines, because all of it shares one set of tiny models and pictures.
"""

import argparse
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from training_runs import options, read_log

from training import distil, evaluate, train
from training.architectures import ENCODERS
from training.backbones import RESNET50, cut_backbone
from training.bottleneck import Bottleneck, VariableBottleneck, random_levels
from training.checkpoint import (
    CheckpointError,
    load_model,
    read_state_dict,
    save_model,
    start_from_checkpoint,
)
from training.command import TrainingError
from training.loss import distillation_loss, draw_levels, feature_loss
from training.models import (
    MODELS,
    DescriptionError,
    Outputs,
    build_model,
    build_random_model,
    describe,
    spec_for,
    spec_of_description,
)
from training.rates import LmbRange, lmb_text, parse_lmb, settle_lmb
from training.teachers import Teacher

MOBILENET = ("torchvision:mobilenet_v3_small", "features.3")


@pytest.fixture(scope="module")
def bottleneck() -> VariableBottleneck:
    """RANDOM weights, a lively latent, and gains and inverses that no ladder gives."""
    model = build_random_model("ours_n4_vr", 2)
    found = model.bottleneck_layer
    assert isinstance(found, VariableBottleneck)
    with torch.no_grad():
        torch.manual_seed(1)
        found.log_gain += 0.1 * torch.rand_like(found.log_gain).cumsum(0)
        found.log_inverse_gain.copy_(-found.log_gain)
    return found


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixed-rate ours_n4 with RANDOM weights, two classes, and the lmb of level 6."""
    path = tmp_path_factory.mktemp("fixed") / "fixed.safetensors"
    save_model(path, build_random_model("ours_n4", 2), {"model": "ours_n4", "lmb": "1.28"})
    return path


def test_a_fixed_rate_model_is_what_it_was() -> None:
    """No gains, no names of them, and a level changes nothing."""
    model = build_random_model("ours_n4", 2)
    assert type(model.bottleneck_layer) is Bottleneck
    assert not any("gain" in key for key in model.state_dict())
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain, at_level = model(image), model(image, level=3.0)
    assert plain.bits.shape == ()
    assert torch.equal(plain.bits, at_level.bits)
    assert torch.equal(plain.logits, at_level.logits)


def test_gains_and_their_inverses_undo_each_other(bottleneck: VariableBottleneck) -> None:
    """Also between whole levels, where logarithms are interpolated."""
    levels = torch.tensor([0.0, 3.25, 7.5, 14.75, 15.0])
    with torch.no_grad():
        gain, inverse = bottleneck.gains(levels, 5)
        assert gain.shape == inverse.shape == (5, 64, 1, 1)
        assert torch.allclose(gain * inverse, torch.ones_like(gain), rtol=1e-5)
        assert torch.equal(gain[0, :, 0, 0], bottleneck.log_gain[0].exp())
        assert torch.equal(gain[4, :, 0, 0], bottleneck.log_gain[15].exp())
        between = (bottleneck.log_gain[3] * 0.75 + bottleneck.log_gain[4] * 0.25).exp()
        assert torch.allclose(gain[1, :, 0, 0], between, rtol=1e-5)
        one, _ = bottleneck.gains(3.25, 2)
        assert torch.equal(one[0], gain[1])
        middle, _ = bottleneck.gains(None, 1)
        assert torch.equal(middle[0], gain[2])


@pytest.mark.parametrize("level", [0.0, 4.5, 15.0])
def test_probabilities_sum_to_one_over_all_symbols(
    bottleneck: VariableBottleneck, level: float
) -> None:
    symbols = torch.arange(-400.0, 401)
    with torch.no_grad():
        gain, _ = bottleneck.gains(level, 1)
        found = bottleneck.likelihood(symbols.expand(1, 64, 1, -1), gain)
    assert (found >= 0).all()
    assert torch.allclose(found.sum(3), torch.ones(1, 64, 1), atol=1e-4)


def test_at_a_gain_of_one_it_is_compressais_estimate(bottleneck: VariableBottleneck) -> None:
    entropy = bottleneck.entropy_bottleneck
    symbols = torch.randint(-4, 5, (2, 64, 7, 5)).float()
    with torch.no_grad():
        found = bottleneck.likelihood(symbols, torch.ones(2, 64, 1, 1))
        _, expected = entropy.eval()(symbols)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_a_higher_level_takes_more_bits_and_gives_finer_features() -> None:
    model = build_random_model("ours_n4_vr", 2)
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        levels = torch.arange(16.0)
        features, bits = model.bottleneck_layer(image.expand(16, -1, -1, -1), levels)
        exact = model.bottleneck_layer.decoder(model.bottleneck_layer.encoder(image))
    assert bits.shape == (16,)
    assert all(low < high for low, high in pairwise(bits.tolist()))
    errors = (features - exact).square().mean((1, 2, 3)).tolist()
    assert errors[0] > errors[7] > errors[15]


def test_each_image_has_its_own_level(bottleneck: VariableBottleneck) -> None:
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        together, bits = bottleneck.eval()(image, torch.tensor([2.0, 11.5]))
        symbols = bottleneck.symbols(image, torch.tensor([2.0, 11.5]))
        for index, level in enumerate((2.0, 11.5)):
            alone, own = bottleneck(image[index : index + 1], level)
            assert torch.allclose(together[index], alone[0], atol=1e-4)
            assert torch.allclose(bits[index], own[0], rtol=1e-4)
            assert torch.equal(symbols[index], bottleneck.symbols(image, level)[index])
        decoded = bottleneck.decode(symbols, torch.tensor([2.0, 11.5]))
    assert torch.allclose(decoded, together, atol=1e-4)


def test_gradients_reach_encoder_gains_and_density(bottleneck: VariableBottleneck) -> None:
    bottleneck.train()
    features, bits = bottleneck(torch.randn(2, 3, 64, 64), torch.tensor([2.5, 9.0]))
    (features.square().mean() + 1e-4 * bits.sum()).backward()
    bottleneck.eval()
    assert bottleneck.encoder[0].weight.grad.abs().sum() > 0
    assert bottleneck.entropy_bottleneck.matrices[0].grad.abs().sum() > 0
    for table in (bottleneck.log_gain, bottleneck.log_inverse_gain):
        touched = table.grad.abs().sum(1) > 0
        assert touched.nonzero().flatten().tolist() == [2, 3, 9]
    bottleneck.zero_grad()


def test_levels_are_spread_over_all() -> None:
    torch.manual_seed(0)
    levels = torch.cat([random_levels(8, torch.device("cpu")) for _ in range(200)])
    assert float(levels.min()) == 0
    assert float(levels.max()) == 15
    counted = torch.bincount(levels.round().long(), minlength=16) / len(levels)
    assert (counted - 1 / 16).abs().max() < 0.02
    batch = random_levels(16, torch.device("cpu")).sort().values
    assert (batch.round() == torch.arange(16)).all()  # one in each sixteenth


def test_the_weight_of_a_level() -> None:
    weights = LmbRange(0.16, 5.12)
    assert weights.at(0.0) == 5.12
    assert weights.at(15.0) == pytest.approx(0.16)
    assert weights.level_of(1.28) == 6
    assert weights.level_of(0.64) == 9
    assert weights.level_of(20.48) == -6
    assert LmbRange(0.5, 2).level_of(1e9) == -15
    found = weights.at(torch.tensor([0.0, 6.0, 15.0]))
    assert isinstance(found, Tensor)
    assert torch.allclose(found, torch.tensor([5.12, 1.28, 0.16]))
    with pytest.raises(ValueError, match="the weight of no level"):
        weights.level_of(0.0)


@pytest.mark.parametrize(
    "text", ["", "-1", "5.12-0.16", "0-1", "1-1", "a-b", "1-2-3", "nan", "0.1-"]
)
def test_refused_weights(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"neither a number .* nor a range"):
        parse_lmb(text)


def test_weights_as_text() -> None:
    assert parse_lmb("1.28") == 1.28
    assert parse_lmb("0.16-20.48") == LmbRange()
    assert [lmb_text(parse_lmb(text)) for text in ("0.64", "0.05-20.48")] == ["0.64", "0.05-20.48"]
    assert settle_lmb(None, False, 1.0) == 1.0
    assert settle_lmb(None, True, 1.0) == LmbRange()
    with pytest.raises(TrainingError, match="has a range of rate weights"):
        settle_lmb(1.28, True, 1.0)
    with pytest.raises(TrainingError, match="give one number"):
        settle_lmb(LmbRange(), False, 1.0)


def test_the_losses_weigh_each_images_bits_with_its_own_lmb() -> None:
    features = [torch.zeros(2, 3, 4, 4)]
    logits, bits = torch.zeros(2, 2), torch.tensor([64.0, 32.0])
    student = Outputs(features, logits, bits)
    teacher = Outputs(features, logits, torch.zeros(()))
    lmb = torch.tensor([0.5, 2.0])
    found = feature_loss(student, teacher, torch.ones(3), 64, lmb, 0.0)
    assert found.bpp == 1.5
    assert found.loss == pytest.approx((0.5 * 64 + 2.0 * 32) / 64)
    paper = distillation_loss(student, teacher, torch.tensor([0, 1]), 64, lmb)
    assert paper.bpp == 1.5
    assert paper.loss == pytest.approx(0.5 * math.log(2) + 1.5)
    assert draw_levels(0.64, torch.zeros(3, 3, 8, 8)) == (None, 0.64)
    level, weight = draw_levels(LmbRange(), torch.zeros(3, 3, 8, 8))
    assert isinstance(level, Tensor)
    assert isinstance(weight, Tensor)
    assert level.shape == weight.shape == (3,)
    assert torch.equal(weight, LmbRange().at(level))


@pytest.mark.parametrize(("lmb", "level"), [("1.28", 6.0), ("0.64", 9.0), ("1", None)])
def test_it_starts_as_the_fixed_rate_checkpoint_at_its_level(
    lmb: str, level: float | None, tmp_path: Path
) -> None:
    """The same symbols, features and bits at the level whose rate weight is the checkpoint's."""
    own = build_random_model("ours_n4", 2)
    save_model(tmp_path / "fixed.safetensors", own, {"lmb": lmb})
    own = load_model(tmp_path / "fixed.safetensors", "ours_n4")[0]
    model = build_model("ours_n4_vr", 2).eval()
    weights = LmbRange(0.16, 5.12)
    start_from_checkpoint(model, tmp_path / "fixed.safetensors", weights)
    at = weights.level_of(float(lmb)) if level is None else level
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = own(image), model(image, level=at)
        symbols = model.bottleneck_layer.symbols(image, at)
        assert torch.equal(symbols, own.bottleneck_layer.symbols(image))
        assert symbols.any()
        assert torch.allclose(found.features[0], expected.features[0], atol=1e-5)
        assert found.bits.sum() == pytest.approx(float(expected.bits), rel=1e-4)
        gain, _ = model.bottleneck_layer.gains(torch.arange(16.0), 16)
    assert (gain[1:] > gain[:-1]).all()
    # A variable-rate checkpoint keeps its gains, to the last bit.
    with torch.no_grad():
        model.bottleneck_layer.log_gain += 0.123456
    save_model(tmp_path / "variable.safetensors", model, {"lmb": "0.16-5.12"})
    again = build_model("ours_n4_vr", 2)
    start_from_checkpoint(again, tmp_path / "variable.safetensors")
    assert torch.equal(again.bottleneck_layer.log_gain, model.bottleneck_layer.log_gain)


def test_checkpoints_that_it_cannot_start_from(fixed: Path, tmp_path: Path) -> None:
    model = build_model("ours_n4_vr", 2)
    for lmb in ("0", "nan", "soon"):
        save_file(read_state_dict(fixed)[0], tmp_path / "odd.safetensors", {"lmb": lmb})
        with pytest.raises(CheckpointError, match=f"its lmb is '{lmb}'"):
            start_from_checkpoint(model, tmp_path / "odd.safetensors")
    save_model(tmp_path / "variable.safetensors", model, {"lmb": "0.16-5.12"})
    with pytest.raises(CheckpointError, match=r"extra: bottleneck_layer\.log_gain"):
        start_from_checkpoint(build_model("ours_n4", 2), tmp_path / "variable.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: bottleneck_layer\.log_gain"):
        load_model(fixed, "ours_n4_vr")


def test_descriptions_and_names_say_that_the_rate_varies() -> None:
    assert MODELS["ours_n4_vr"].variable_rate
    assert MODELS["ours_n4_vr"].architecture is ENCODERS["n4"]
    assert MODELS["ours_n4_vr"].backbone == RESNET50
    name, spec = spec_for("n0", *MOBILENET, variable_rate=True)
    assert name == "n0_mobilenet_v3_small_vr"
    text = describe(spec)
    assert json.loads(text)["levels"] == 16
    assert spec_of_description(text, 1 << 40) == spec
    assert "levels" not in json.loads(describe(spec_for("n0", *MOBILENET)[1]))
    with pytest.raises(DescriptionError, match="8 rate levels"):
        spec_of_description(text.replace("16", "8"), 1 << 40)
    lite2 = MODELS["n4_lite2_vr"].backbone
    assert spec_for("n4", lite2.source, lite2.cut, True)[0] == "n4_lite2_vr"


@pytest.mark.slow
def test_a_run_from_a_fixed_rate_checkpoint_to_one_of_all_rates(
    data: Path, backbone: Path, fixed: Path, tmp_path: Path
) -> None:
    small = ["--model", "ours_n4_vr", "--no-amp", "--val_size", "64", "--train_size", "32:2"]
    more = [*small, "--model_args", "bpp_lmb=0.16-20.48"]
    more += ["--pretrain", str(fixed), "--optimizer", "adamw", "--frozen_tail", "--bottleneck_only"]
    assert train.main(options(data, backbone, tmp_path / "run", *more)) == 0
    log = read_log(tmp_path / "run")
    for level in (0, 5, 10, 15):
        assert 0 <= log[-1][f"held_out_top1_level{level}"] <= 1
    rates = [log[-1][f"held_out_estimated_bpp_level{level}"] for level in (0, 5, 10, 15)]
    assert rates == sorted(rates)
    out = tmp_path / "run" / "lmb0.16-20.48.safetensors"
    model, metadata = load_model(out, "ours_n4_vr", backbone)
    assert (metadata["model"], metadata["lmb"]) == ("ours_n4_vr", "0.16-20.48")
    bottleneck = model.bottleneck_layer
    assert isinstance(bottleneck, VariableBottleneck)
    start = build_model("ours_n4_vr", 2)
    start_from_checkpoint(start, fixed)
    moved = (bottleneck.log_gain - start.bottleneck_layer.log_gain).abs().max(1).values
    assert (moved > 0).all(), "gains of every level are trained"
    assert not bottleneck.medians.any()
    # A second stage trains the tail, at random levels.
    whole = tmp_path / "whole.safetensors"
    save_model(whole, model, metadata)
    more = [*small, "--pretrain", str(whole), "--frozen_bottleneck"]
    arguments = options(data, backbone, tmp_path / "second", *more)
    at = arguments.index("bpp_lmb=0.5")
    del arguments[at - 1 : at + 1]
    assert train.main(arguments) == 0
    second = load_model(tmp_path / "second" / "lmb0.16-20.48.safetensors", "ours_n4_vr")[0]
    assert torch.equal(second.bottleneck_layer.log_gain, bottleneck.log_gain)
    assert not torch.equal(second.tail.fc.weight, model.tail.fc.weight)


def test_one_weight_for_a_variable_rate_and_a_range_for_a_fixed_one_are_refused(
    data: Path, backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, text in (
        (["--model", "ours_n4_vr"], "has a range of rate weights, such as 0.16-20.48, not 0.5"),
        (["--model_args", "bpp_lmb=1-2"], "give one number"),
    ):
        assert train.main(options(data, backbone, tmp_path / "run", *more)) == 1
        assert text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures without labels."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index in range(12):
        coarse = generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 72)).save(root / f"{index}.png")
    return root


def test_distillation_of_an_unregistered_model(pictures: Path, tmp_path: Path, capsys) -> None:
    """First a fixed rate, then any rate from it. A range asks for a variable rate."""
    torch.manual_seed(0)
    teacher = Teacher(4, cut_backbone(*MOBILENET))
    save_file(dict(teacher.backbone.state_dict()), tmp_path / "weights.safetensors")
    parts = ["--encoder", "n0", "--backbone", MOBILENET[0], "--cut", MOBILENET[1], "--no-amp"]
    parts += ["--weights", str(tmp_path / "weights.safetensors"), "--data", str(pictures)]
    parts += ["--workers", "0", "--train_size", "64:2", "--batch_size", "4", "--held_out", "2"]
    parts += ["--val_size", "64", "--ramp", "0.1:0.2", "--frozen_tail"]
    assert distil.main([*parts, "--run_dir", str(tmp_path / "fixed"), "--lmb", "0.01"]) == 0
    begin = tmp_path / "fixed" / "lmb0.01.safetensors"
    more = ["--run_dir", str(tmp_path / "any"), "--lmb", "0.002-0.05", "--pretrain", str(begin)]
    assert distil.main([*parts, *more]) == 0
    log = read_log(tmp_path / "any")
    folder = pictures.name
    rates = [log[-1][f"held_out_estimated_bpp_level{level}_{folder}"] for level in (0, 5, 10, 15)]
    assert rates == sorted(rates)
    assert f"held_out_agreement_level15_{folder}" in log[-1]
    out = tmp_path / "any" / "lmb0.002-0.05.safetensors"
    model, metadata = load_model(out, "n0_mobilenet_v3_small_vr")
    assert json.loads(metadata["architecture"])["levels"] == 16
    assert isinstance(model.bottleneck_layer, VariableBottleneck)
    wrong = ["--encoder", "n0", "--backbone", RESNET50.source, "--cut", RESNET50.cut]
    where = ["--data", str(pictures), "--run_dir", str(tmp_path / "none"), "--lmb", "1-2"]
    assert distil.main([*wrong, *where]) == 1
    assert "a ResNet-50 cut there has no variable rate with n0" in capsys.readouterr().err


def test_the_torch_model_is_evaluated_at_several_levels(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("checkpoints") / "ours_n4_vr" / "lmb0.16-5.12.safetensors"
    save_model(file, build_random_model("ours_n4_vr", 2), {"labels": '["cat", "dog"]'})
    command = ["-d", str(root), "--torch", "--as-is", "-w", "0"]
    assert evaluate.main([*command, "--json", "--predictions", "out"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["level"] for record in records] == [0, 5, 10, 15]
    assert {record["lmb"] for record in records} == {"0.16-5.12"}
    rates = [record["estimated_bpp"] for record in records]
    assert rates == sorted(rates)
    assert len(list(Path("out").glob("ours_n4_vr_lmb0.16-5.12_level*.txt"))) == 4
    assert evaluate.main([*command, "--images", "2"]) == 0
    assert "| ours_n4_vr | 0.16-5.12 at level 10 | 2 |" in capsys.readouterr().out


@pytest.mark.slow
def test_through_export_and_both_ends(pictures: Path, tmp_path: Path) -> None:
    """A smoke-sized run, then files of several levels, which the cloud takes together."""
    from export.__main__ import main as export
    from runtime import CloudDecoder, EdgeEncoder
    from runtime.codec.feature_file import parse

    torch.manual_seed(0)
    teacher = Teacher(4, cut_backbone(*MOBILENET))
    save_file(dict(teacher.backbone.state_dict()), tmp_path / "weights.safetensors")
    parts = ["--encoder", "n0", "--backbone", MOBILENET[0], "--cut", MOBILENET[1], "--smoke"]
    parts += ["--weights", str(tmp_path / "weights.safetensors"), "--data", str(pictures)]
    assert distil.main([*parts, "--run_dir", str(tmp_path / "run"), "--lmb", "0.01-0.1"]) == 0
    checkpoint = tmp_path / "run" / "lmb0.01-0.1.safetensors"
    bundle = tmp_path / "bundle"
    options = ["--checkpoint", str(checkpoint), "--refit", str(pictures), "--out", str(bundle)]
    assert export(["n0_mobilenet_v3_small_vr", *options]) == 0
    picture = next(pictures.iterdir())
    levels = (0.0, 4.5, 9.0, 15.0)
    files = [EdgeEncoder(bundle, 1, rate=level).encode(picture) for level in levels]
    assert [parse(file).step for file in files] == [0, 72, 144, 240]
    assert [len(file) for file in files] == sorted(len(file) for file in files)
    decoder = CloudDecoder(bundle, 1)
    assert np.isfinite(decoder.logits(files)).all()
    budget = len(files[2])
    limited = EdgeEncoder(bundle, 1, max_bytes=budget).encode(picture)
    assert len(limited) <= budget
    assert len(decoder.classify(limited)) == 4
