"""Variable rate, from a checkpoint to both ends: levels, tables, counts, graphs, refusals.

The model is small: encoder n0 in front of a MobileNet, with RANDOM weights and four classes.
"""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from export import cli as command
from export import stages
from export.counts import Counter, CountsError, contexts_of, count
from export.images import synthetic_images
from export.levels import LevelCounts, channel_order, own_coding
from export.link import CHECKED_LEVELS
from export.parity import ParityError, check_parity, torch_outputs, torch_symbols
from export.tables import QuantilesError, bottleneck_sha256, make_level_tables
from runtime import CloudDecoder, EdgeEncoder
from runtime.codec.bundle import Bundle
from runtime.codec.coder import CONTEXTS
from runtime.codec.feature_file import Profile, parse
from runtime.codec.rates import LEVELS, Rates, step_of
from runtime.errors import RatesError
from training.bottleneck import VariableBottleneck
from training.checkpoint import load_model, save_model
from training.models import FeatureCompressionModel, build_random, build_random_model, spec_for

NAME, SPEC = spec_for("n0", "torchvision:mobilenet_v3_small", "features.3", True)
Capture = pytest.CaptureFixture[str]
# Exporting the bundle and its calibration take more than ten seconds.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_random(SPEC, 4)
    bottleneck = bottleneck_of(model)
    with torch.no_grad():
        torch.manual_seed(3)
        bottleneck.log_gain += 0.2 * torch.rand(64)
        bottleneck.log_inverse_gain += 0.1 * torch.rand(LEVELS, 64)
        _enliven(model)
    path = tmp_path_factory.mktemp("checkpoints") / "any.safetensors"
    about = {"model": NAME, "lmb": "0.1-3", "weights": "random", "labels": '["a", "b", "c", "d"]'}
    save_model(path, model, about)
    return path


def _enliven(model: FeatureCompressionModel) -> None:
    """Let logits differ from image to image: normalise what each layer of the tail gives."""
    mean, std = SPEC.backbone.normalisation.tensors()
    images = torch.from_numpy(synthetic_images(16, 96)).permute(0, 3, 1, 2)
    for layer in model.tail.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
            layer.reset_running_stats()
    model.tail.train()
    for layer in model.tail.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.eval()
    logits = model((images / 255 - mean) / std, level=8.0).logits
    model.eval()
    last = model.tail.get_parameter(f"{SPEC.backbone.classifier}.weight")
    last /= logits.std()


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> FeatureCompressionModel:
    return load_model(checkpoint, NAME)[0]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, image in enumerate(synthetic_images(24, side=128)):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported with tables fitted to the pictures; the counts are kept beside the checkpoint."""
    out = tmp_path_factory.mktemp("bundles") / "any"
    arguments = [NAME, "--checkpoint", str(checkpoint), "--out", str(out), "--as-is"]
    counts = ["--refit", str(pictures), "--counts", str(checkpoint.with_suffix(".counts.json"))]
    assert command.main([*arguments, *counts]) == 0
    return out


def bottleneck_of(model: FeatureCompressionModel) -> VariableBottleneck:
    assert isinstance(model.bottleneck_layer, VariableBottleneck)
    return model.bottleneck_layer


def test_what_the_bundle_says(bundle: Path, model: FeatureCompressionModel) -> None:
    manifest = Bundle.load(bundle).manifest
    assert manifest.format_version == 2
    assert manifest.lmb == "0.1-3"
    assert set(manifest.files) == {
        *("tables.json", "rates.json", "edge.onnx", "cloud.onnx", "labels.txt")
    }
    tables = manifest.record["tables"]
    assert tables["images"] == 24
    assert tables["source"].startswith("pictures")
    assert len(tables["context_channels"]) == LEVELS
    levels = manifest.record["parity"]["levels"]
    assert [report["level"] for report in levels] == list(CHECKED_LEVELS)
    sizes = [report["mean_payload_bytes"] for report in levels]
    assert sizes == sorted(sizes)
    rates, own = Rates.from_json((bundle / "rates.json").read_bytes()), bottleneck_of(model)
    assert np.array_equal(rates.gains, own.log_gain.detach().exp().numpy())
    assert np.array_equal(rates.inverse_gains, own.log_inverse_gain.detach().exp().numpy())


def test_the_graphs_are_cut_where_the_gains_come_in(bundle: Path) -> None:
    edge, cloud = (onnx.load(bundle / f"{end}.onnx").graph for end in ("edge", "cloud"))
    (latent,), (values,) = edge.output, cloud.input
    assert (latent.name, values.name) == ("latent", "values")
    for one in (latent, values):
        assert one.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert not {"Round", "Clip"} & {node.op_type for node in edge.node}


@pytest.mark.parametrize("level", [0.0, 3.25, 7.5, 12.0, 15.0])
def test_both_ends_give_what_torch_gives(
    bundle: Path, model: FeatureCompressionModel, level: float
) -> None:
    images = synthetic_images(3, side=96)
    encoder, decoder = EdgeEncoder(bundle, 1, rate=level), CloudDecoder(bundle, 1)
    files = [encoder.encode(image, as_is=True) for image in images]
    assert [parse(file).step for file in files] == [step_of(level)] * 3
    expected = torch_symbols(model, images, step_of(level))
    found = np.stack([decoder.symbols(file) for file in files])
    assert (found == expected).mean() > 0.999
    logits, _ = torch_outputs(model, found, step_of(level))
    assert np.ptp(logits, 0).max() > 0.1
    assert np.abs(decoder.logits(files) - logits).max() < 1e-3


def test_bytes_grow_with_the_level_and_a_batch_mixes_levels(
    bundle: Path, model: FeatureCompressionModel
) -> None:
    image = synthetic_images(1, side=96)[0]
    levels = [0.0, 2.0, 5.5, 8.0, 11.0, 15.0]
    files = [EdgeEncoder(bundle, 1, rate=level).encode(image, as_is=True) for level in levels]
    assert all(len(low) < len(high) for low, high in pairwise(files))
    mixed = CloudDecoder(bundle, 1).logits(files)
    for level, file, logits in zip(levels, files, mixed, strict=True):
        alone = CloudDecoder(bundle, 1).logits([file])[0]
        assert np.allclose(logits, alone, atol=1e-4)
        symbols = torch_symbols(model, image[None], step_of(level))
        assert np.abs(torch_outputs(model, symbols, step_of(level))[0][0] - logits).max() < 0.1
    assert np.abs(mixed[0] - mixed[-1]).max() > 0.2


def test_kept_counts_give_the_same_bundle_and_those_of_others_are_refused(
    bundle: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for end in ("edge", "cloud"):  # saves the seconds of torch.onnx
        monkeypatch.setattr(
            stages, f"export_{end}", lambda _, path: shutil.copy(bundle / path.name, path)
        )
    counts = checkpoint.with_suffix(".counts.json")
    copy = tmp_path / checkpoint.name
    copy.write_bytes(checkpoint.read_bytes())
    beside = copy.with_suffix(".counts.json")
    beside.write_bytes(counts.read_bytes())
    arguments = [NAME, "--checkpoint", str(copy), "--out", str(tmp_path / "again")]
    assert command.main(arguments) == 0
    assert "fitted to 24 images" in capsys.readouterr().out
    again, first = (Bundle.load(folder).manifest for folder in (tmp_path / "again", bundle))
    assert again.fingerprint == first.fingerprint
    content = json.loads(counts.read_text())
    for change, text in (
        ({"bottleneck_sha256": "0" * 64}, "--own-tables"),
        ({"levels": content["levels"][:3]}, "counts 3 levels, this release has 16"),
        ({"levels": content["levels"][0]}, "is not understood"),
        ({"levels": None}, "is not understood"),
    ):
        beside.write_text(json.dumps(content | change))
        assert command.main(arguments) == 1
        assert text in capsys.readouterr().err
    # Counts of one rate are none of 16 levels, and the other way round.
    sha = bottleneck_sha256(load_model(checkpoint, NAME)[0])
    fixed = count(
        [np.zeros((1, 64, 4, 4), np.int16)],
        make_level_tables(load_model(checkpoint, NAME)[0], 0),
        sha,
        "zeros",
    )
    beside.write_text(fixed.to_json())
    with pytest.raises(CountsError, match=r"not understood.*levels"):
        LevelCounts.read(beside, sha)
    with pytest.raises(CountsError, match=r"not understood.*channels"):
        type(fixed).read(counts, sha)


def test_counts_of_levels_survive_their_file(checkpoint: Path, bundle: Path) -> None:
    file = checkpoint.with_suffix(".counts.json")
    counts = LevelCounts.read(file, Bundle.load(bundle).manifest.bottleneck_sha256)
    assert counts.to_json() == file.read_text()
    symbols = [sum(int(one.counts.sum()) for one in level.channels) for level in counts.levels]
    assert symbols == [24 * 64 * 16 * 16] * LEVELS
    spans = [sum(one.counts.shape[1] for one in level.channels) for level in counts.levels]
    assert spans == sorted(spans)


def test_the_counter_counts_pairs_of_symbol_and_context(model: FeatureCompressionModel) -> None:
    tables = make_level_tables(model, 8)
    batches = np.random.default_rng(0).integers(-3, 9, (2, 3, 64, 5, 6)).astype(np.int16)
    batches[0, 0, 0, 0, 0], batches[1, 1, 1, 2, 2] = 32767, -32767
    counter = Counter(tables)
    for batch in batches:
        counter.add(batch)
    found = counter.counts("", "made up")
    assert found.images == 6
    for index in (0, 1, 17):
        channel, planes = found.channels[index], batches[:, :, index].reshape(6, 5, 6)
        context = contexts_of(planes, channel.thresholds)
        assert channel.counts.shape[0] == CONTEXTS
        for symbol in {*planes.ravel().tolist(), channel.first}:
            expected = np.bincount(context[planes == symbol], minlength=CONTEXTS)
            assert np.array_equal(channel.counts[:, symbol - channel.first], expected)


@pytest.mark.parametrize("level", [0, 6, 15])
def test_tables_say_what_the_density_does(model: FeatureCompressionModel, level: int) -> None:
    tables, bottleneck = make_level_tables(model, level), bottleneck_of(model)
    with torch.no_grad():
        gain, _ = bottleneck.gains(float(level), 1)
        for channel in (0, 31, 63):
            cdf, offset = tables.cdfs[channel], int(tables.offsets[channel])
            assert offset <= -1
            assert offset + len(cdf) - 3 >= 1
            symbols = torch.arange(offset, offset + len(cdf) - 2).float()
            expected = bottleneck.likelihood(symbols.expand(1, 64, 1, -1), gain)[0, channel, 0]
            found = np.diff(cdf.astype(np.int64))[:-1] / 65536
            assert np.abs(found - expected.numpy()).max() < 1e-3
            # Symbols at the ends that a table could not say rightly are left to escapes.
            assert expected[0] > 2**-17 or offset == -1
            assert expected[-1] > 2**-17 or symbols[-1] == 1


def test_a_level_needs_few_bits_with_its_own_tables_and_more_with_anothers(
    bundle: Path, model: FeatureCompressionModel
) -> None:
    variable = Bundle.load(bundle).variable
    assert variable
    symbols = torch_symbols(model, synthetic_images(3, side=128), step_of(12))
    sizes = [
        sum(len(variable.levels[level].encode(one.copy(), Profile.STATIC)) for one in symbols)
        for level in (12, 2)
    ]
    assert sizes[0] < 0.95 * sizes[1]
    own = own_coding(model)
    for fitted, plain in zip(variable.levels, own.levels, strict=True):
        assert list(map(len, fitted.cdfs)) == list(map(len, plain.cdfs))


def test_channels_are_in_the_order_of_what_they_carry() -> None:
    """Measured: what changes behind the decoder's first layer where a channel is left out."""
    model = build_random_model("ours_n4_vr", 2)
    bottleneck = bottleneck_of(model)
    variable = own_coding(model)
    rng, channels = np.random.default_rng(0), 64
    symbols = np.empty((channels, 40, 40), np.float32)
    for channel in range(channels):
        cdf = variable.levels[0].cdfs[channel].astype(np.int64)
        shares = np.diff(cdf)[:-1] / np.diff(cdf)[:-1].sum()
        first = int(variable.levels[0].offsets[channel])
        symbols[channel] = rng.choice(np.arange(first, first + len(shares)), (40, 40), p=shares)
    values = torch.from_numpy(symbols * variable.rates.inverse_gain(0))[None]
    layer, changes = bottleneck.decoder[0], []
    with torch.no_grad():
        whole = layer(values)
        for channel in range(channels):
            without = values.clone()
            without[:, channel] = 0
            changes.append(float((layer(without) - whole).square().mean()))
    order = variable.rates.order.tolist()
    assert sorted(order) == list(range(channels))
    # Those that carry something come first, the ones with the fewest bits at their head.
    changed, bits = np.array(changes)[order], []
    for channel in order:
        frequencies = np.diff(variable.levels[0].cdfs[channel].astype(np.int64))[:-1]
        shares = frequencies[frequencies > 0] / frequencies.sum()
        bits.append(float(-(shares * np.log2(shares)).sum()))
    turns = [at for at in range(1, channels) if bits[at] < bits[at - 1] - 1e-9]
    first = turns[0] if turns else channels
    assert changed[:first].min() > 0.005 * changed.max()
    assert all(changed[first:] < 0.02 * changed.max())
    rest = changed[first:]
    assert len(rest) < 3 or np.corrcoef(np.argsort(np.argsort(-rest)), range(len(rest)))[0, 1] > 0.9
    conv = torch.nn.Sequential(torch.nn.Conv2d(64, 4, 1))
    with torch.no_grad():
        conv[0].weight.zero_()
        conv[0].weight[:, 5] = 1.0
    assert channel_order(conv, variable.levels[0], variable.rates.inverse_gains[0])[0] == 5


def test_the_check_sees_other_gains(bundle: Path, checkpoint: Path) -> None:
    other = load_model(checkpoint, NAME)[0]
    variable = Bundle.load(bundle).variable
    assert variable
    images = synthetic_images(2, 96)
    graphs = (bundle / "edge.onnx", bundle / "cloud.onnx")
    check_parity(other, variable, *graphs, images, "synthetic images", 120)
    with torch.no_grad():
        bottleneck_of(other).log_gain[7:9] += 0.3
    with pytest.raises(ParityError, match=r"^at rate level 7.5: .*of the symbols equal torch's"):
        check_parity(other, variable, *graphs, images, "synthetic images", 120)
    check_parity(other, variable, *graphs, images, "synthetic images", 240)
    with torch.no_grad():
        bottleneck_of(other).log_inverse_gain[15] += 0.5
    with pytest.raises(ParityError, match=r"^at rate level 15: .*a logit differs"):
        check_parity(other, variable, *graphs, images, "synthetic images", 240)


@pytest.mark.parametrize("value", [float("inf"), 20.0, -200.0])
def test_gains_that_no_bundle_may_have(value: float) -> None:
    model = build_random(SPEC, 4)
    with torch.no_grad():
        bottleneck_of(model).log_inverse_gain[4, 9] = value
    with pytest.raises(RatesError, match="channel 9 of level 4"):
        own_coding(model)


def test_quantiles_that_bound_no_table_of_a_level() -> None:
    model = build_random(SPEC, 4)
    with torch.no_grad():
        model.bottleneck_layer.entropy_bottleneck.quantiles[5, 0, 2] = 8000.0
        bottleneck_of(model).log_gain[15] = 1.0
    assert isinstance(make_level_tables(model, 0).channels, int)
    with pytest.raises(QuantilesError, match="channel 5"):
        make_level_tables(model, 15)


def test_a_model_is_exported_as_what_it_is(
    checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert command.main(["ours_n4_vr", "--checkpoint", str(checkpoint), *out]) == 1
    assert "is of model" in capsys.readouterr().err
    assert command.main([NAME, "--checkpoint", str(checkpoint), "--lmb", "1.28", *out]) == 1
    assert "is of lmb" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_int8_is_judged_at_several_levels(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The logits of random weights are close together, so int8 moves them far.
    monkeypatch.setattr("export.int8.gate.MAX_MOVED", 100.0)
    for index, image in enumerate(synthetic_images(340, 32)):
        folder = tmp_path / "images" / "abcd"[index % 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    kept, out = tmp_path / "ranges.json", tmp_path / "out"
    calibrate = ["--calibrate", str(tmp_path / "images"), "--as-is", "--ranges", str(kept)]
    arguments = [NAME, "--checkpoint", str(checkpoint), "--own-tables", "--out", str(out)]
    assert command.main([*arguments, *calibrate]) == 0
    gate = json.loads(kept.read_text())["gate"]
    assert gate["images"] == 34
    # Random weights may or may not be good enough in int8, and the cloud's are not.
    if (out / "edge.int8.onnx").exists():
        image = synthetic_images(1, side=96)[0]
        for level in (0.0, 15.0):
            encoder = EdgeEncoder(out, 1, precision="int8", rate=level)
            assert len(CloudDecoder(out, 1).classify(encoder.encode(image, as_is=True))) == 4
