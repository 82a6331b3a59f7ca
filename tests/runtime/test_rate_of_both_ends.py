"""Both ends with a variable-rate bundle: levels, budgets, and batches that mix them."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bundle_files import put
from made_images import picture
from numpy.typing import NDArray
from PIL import Image
from variable_bundle import edit_manifest

from export.images import synthetic_images
from runtime import CloudDecoder, EdgeEncoder, errors
from runtime.codec.budget import Budget, LatentCoder
from runtime.codec.feature_file import Profile, parse
from runtime.engine.tune import edge_deviation, tune

Copy = Callable[[Path], Path]
LEVELS = (0, 0.5, 3, 7.5, 8, 11.25, 15)


@pytest.fixture(scope="module")
def edge(variable_bundle: Path) -> EdgeEncoder:
    return EdgeEncoder(variable_bundle, 1)


@pytest.fixture(scope="module")
def cloud(variable_bundle: Path) -> CloudDecoder:
    return CloudDecoder(variable_bundle, 1)


@pytest.fixture(scope="module")
def pictures(golf_ball: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """224x224 pixels each: photograph, made-up scenes, noise, one colour, a gradient."""
    noise = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    return [
        golf_ball[:224, :224],
        golf_ball[-224:, -224:],
        *synthetic_images(3),
        noise,
        np.full((224, 224, 3), 127, np.uint8),
        picture(224, 224),
    ]


@pytest.fixture(scope="module")
def coders(edge: EdgeEncoder, pictures: list[NDArray[np.uint8]]) -> list[LatentCoder]:
    latents = edge.graph_output(np.stack(pictures))
    return [LatentCoder(edge.bundle, latent, 224, 224, edge.profile) for latent in latents]


def test_the_graph_gives_the_latent(edge: EdgeEncoder, pictures: list) -> None:
    latent = edge.graph_output(pictures[0][None])
    assert (latent.shape, latent.dtype) == ((1, 64, 28, 28), np.float32)
    assert edge.bundle.rates
    symbols = edge.bundle.rates.symbols(latent[0], 128)
    assert np.array_equal(edge.symbols(pictures[0][None])[0], symbols)


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_encoded_at_a_level_is_decoded(
    edge: EdgeEncoder, cloud: CloudDecoder, pictures: list, level: float
) -> None:
    data = edge.encode(pictures[0], as_is=True, rate=level)
    file = parse(data)
    assert (file.version, file.step, file.kept) == (2, round(16 * level), None)
    latent, rates = edge.graph_output(pictures[0][None])[0], edge.bundle.rates
    assert rates
    symbols = rates.symbols(latent, round(16 * level))
    assert np.array_equal(cloud.symbols(data), symbols)
    assert np.array_equal(cloud.graph_input(data), rates.values(symbols, round(16 * level)))
    assert cloud.classify(data)[0].probability > 0


def test_a_high_level_classifies_as_the_fixed_rate_does(
    edge: EdgeEncoder, cloud: CloudDecoder, encoder: EdgeEncoder, decoder: CloudDecoder
) -> None:
    image = Path(__file__).resolve().parents[2] / "docs" / "demo" / "golf_ball.jpg"
    wanted = decoder.classify(encoder.encode(image))[0]
    found = cloud.classify(edge.encode(image, rate=15))[0]
    assert found.label == wanted.label == "golf ball"
    assert found.probability > 0.9


def test_the_default_level_and_the_encoders_own(
    variable_bundle: Path, edge: EdgeEncoder, pictures: list
) -> None:
    assert parse(edge.encode(pictures[0])).step == 128
    own = EdgeEncoder(variable_bundle, 1, rate=2.5)
    assert parse(own.encode(pictures[0])).step == 40
    assert parse(own.encode(pictures[0], rate=3)).step == 48
    symbols = own.symbols(pictures[0][None])
    file = own.encode_symbols(symbols[0], 224, 224)
    assert file == own.encode(pictures[0], as_is=True)
    assert own.encode_batch(pictures[:2]) == [own.encode(image) for image in pictures[:2]]


def test_bytes_grow_with_the_level(coders: list[LatentCoder]) -> None:
    """Tables change at whole levels, so files may shrink a little there."""
    for coder in coders[:5]:
        sizes = np.array([len(coder.at(step)) for step in range(0, 241, 4)])
        assert (sizes[1:] >= 0.95 * sizes[:-1] - 4).all()
        assert (sizes[16:] > sizes[:-16]).all(), "four levels up"


def test_no_file_has_more_bytes_than_allowed(coders: list[LatentCoder]) -> None:
    for coder in coders:
        for most in [*range(20, 60), *range(60, 1201, 23), 1200]:
            data = coder.within(most)
            assert len(data) <= most
            file = parse(data)
            assert file.step is not None
            if file.kept is None and file.step < 240:
                # No level that is clearly higher would have fitted.
                assert len(coder.at(min(240, file.step + 64))) > 0.9 * most


def test_a_file_without_channels_is_the_least(
    edge: EdgeEncoder, cloud: CloudDecoder, pictures: list
) -> None:
    data = edge.encode(pictures[0], max_bytes=13)
    assert (len(data), parse(data).kept) == (13, 0)
    assert not cloud.symbols(data).any()
    assert len(cloud.classify(data)) == 5
    with pytest.raises(errors.BudgetTooSmallError, match="at least 13, allow so many"):
        edge.encode(pictures[0], max_bytes=12)


def test_a_cut_file_has_the_first_channels_of_the_order(
    edge: EdgeEncoder, cloud: CloudDecoder, pictures: list
) -> None:
    data = edge.encode(pictures[0], max_bytes=51)
    file, rates = parse(data), edge.bundle.rates
    assert rates
    assert file.step == 0
    assert file.kept
    whole = cloud.symbols(edge.encode(pictures[0], rate=0))
    found = cloud.symbols(data)
    first, rest = rates.order[: file.kept], rates.order[file.kept :]
    assert np.array_equal(found[first], whole[first])
    assert whole[rest].any()
    assert not found[rest].any()


@pytest.mark.parametrize("level", [1, 8, 15])
def test_a_level_is_lowered_only_where_it_must_be(
    edge: EdgeEncoder, pictures: list, level: float
) -> None:
    for image in pictures:
        asked = edge.encode(image, rate=level)
        found = edge.encode(image, rate=level, max_bytes=500)
        assert (found == asked) == (len(asked) <= 500)
        assert len(found) <= 500
        file = parse(found)
        assert file.step is not None
        assert file.step <= 16 * level


def test_batches_mix_levels(edge: EdgeEncoder, cloud: CloudDecoder, pictures: list) -> None:
    files = [edge.encode(pictures[0], rate=level) for level in (0, 7.5, 15)]
    files += [edge.encode(pictures[1], max_bytes=51)]
    together = cloud.logits(files)
    for data, row in zip(files, together, strict=True):
        assert np.allclose(cloud.logits([data])[0], row, rtol=1e-4, atol=1e-4)
    assert cloud.embed(files).shape == (len(files), 2048)


@pytest.mark.parametrize("profile", Profile)
def test_both_profiles(
    variable_bundle: Path, cloud: CloudDecoder, pictures: list, profile: Profile
) -> None:
    encoder = EdgeEncoder(variable_bundle, 1, profile=profile)
    other = EdgeEncoder(variable_bundle, 1, profile=next(p for p in Profile if p is not profile))
    for options in ({"rate": 0.0}, {"rate": 9.0}, {"max_bytes": 60}):
        data = encoder.encode(pictures[1], **options)
        assert parse(data).profile is profile
        if "rate" in options:
            assert np.array_equal(
                cloud.symbols(data), cloud.symbols(other.encode(pictures[1], **options))
            )


def test_a_mean_is_kept_over_a_batch(edge: EdgeEncoder, pictures: list) -> None:
    scenes = list(synthetic_images(12)) * 6
    for target in (300, 700):
        files = edge.encode_batch(scenes, target_bytes=target)
        mean = sum(map(len, files)) / len(files)
        assert abs(mean / target - 1) < 0.05
        assert len({parse(data).step for data in files}) > 1
    assert edge.encode_batch(scenes[:5], target_bytes=300) == files_of_a_new_stream(edge, scenes)


def files_of_a_new_stream(edge: EdgeEncoder, scenes: list) -> list[bytes]:
    """The same images, prepared first and coded afterwards, by another encoder."""
    other = EdgeEncoder(edge.bundle.folder, 1, target_bytes=300)
    return [finish() for finish in [other.prepare(image) for image in scenes[:5]]]


def test_a_mean_and_a_most(variable_bundle: Path, pictures: list) -> None:
    encoder = EdgeEncoder(variable_bundle, 1, target_bytes=600, max_bytes=640)
    sizes = [len(encoder.encode(image)) for image in pictures * 4]
    assert max(sizes) <= 640
    assert np.mean(sizes) > 450


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": -0.1}, "rate level of -0.1"),
        ({"rate": 15.01}, "rate level of 15.01"),
        ({"rate": float("nan")}, "rate level of nan"),
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"target_bytes": 0.5}, "target_bytes is 0.5"),
        ({"target_bytes": float("inf")}, "target_bytes is inf"),
        ({"target_bytes": float("nan")}, "target_bytes is nan"),
        ({"rate": 3, "target_bytes": 300}, "each choose the level"),
    ],
)
def test_bad_budgets_are_refused(
    variable_bundle: Path, edge: EdgeEncoder, pictures: list, options: dict, said: str
) -> None:
    with pytest.raises(errors.RateError, match=said):
        edge.encode(pictures[0], **options)
    with pytest.raises(errors.RateError, match=said):
        edge.encode_batch(pictures[:1], **options)
    with pytest.raises(errors.RateError, match=said):
        EdgeEncoder(variable_bundle, 1, **options)


@pytest.mark.parametrize("options", [{"rate": 3}, {"max_bytes": 300}, {"target_bytes": 300}])
def test_a_bundle_with_one_rate_takes_no_budget(
    bundle: Path, encoder: EdgeEncoder, pictures: list, options: dict
) -> None:
    with pytest.raises(errors.FixedRateError, match="take a variable-rate bundle"):
        encoder.encode(pictures[0], **options)
    with pytest.raises(errors.FixedRateError, match="take a variable-rate bundle"):
        EdgeEncoder(bundle, 1, **options)


def test_files_of_the_other_kind_of_bundle_are_refused(
    decoder: CloudDecoder, cloud: CloudDecoder, edge: EdgeEncoder, feature_bytes: bytes, pictures
) -> None:
    with pytest.raises(errors.WrongBundleError, match="is of bundle"):
        cloud.logits([feature_bytes])
    with pytest.raises(errors.WrongBundleError, match="is of bundle"):
        decoder.logits([edge.encode(pictures[0])])


@pytest.mark.parametrize(
    ("written", "asked", "is_current"),
    [
        ({"rate": 3}, {"rate": 3}, True),
        ({"rate": 3}, {"rate": 4}, False),
        ({"rate": 3}, {}, True),
        ({"rate": 3}, {"target_bytes": 900}, True),
        ({"rate": 3}, {"rate": 4, "max_bytes": 5000}, True),
        ({"rate": 4}, {"rate": 3, "max_bytes": 5000}, False),
        ({"rate": 8}, {"max_bytes": 100}, False),
        ({"max_bytes": 100}, {"max_bytes": 100}, True),
        ({"max_bytes": 100}, {"rate": 0}, False),
    ],
)
def test_whether_a_file_is_current(
    variable_bundle: Path,
    edge: EdgeEncoder,
    pictures: list,
    tmp_path: Path,
    written: dict,
    asked: dict,
    is_current: bool,
) -> None:
    (tmp_path / "feat.bin").write_bytes(edge.encode(pictures[0], **written))
    encoder = EdgeEncoder(variable_bundle, 1, **asked)
    assert encoder.is_current(tmp_path / "feat.bin") is is_current


def test_a_cut_file_is_of_no_level() -> None:
    assert not Budget(rate=0).allows(0, 100, kept=5)
    assert Budget(rate=0, max_bytes=100).allows(0, 100, kept=5)


def test_other_sizes(edge: EdgeEncoder, cloud: CloudDecoder, golf_ball) -> None:
    data = edge.encode(golf_ball, as_is=True, max_bytes=700)
    assert (parse(data).height, parse(data).width) == (480, 640)
    assert cloud.logits([data, edge.encode(golf_ball, rate=4)]).shape == (2, 10)
    file = io.BytesIO()
    Image.fromarray(golf_ball[:8, :8]).save(file, "PNG")
    file.seek(0)
    assert len(edge.encode(file, as_is=True, max_bytes=13)) <= 13


def test_a_latent_that_is_not_a_number(variable_bundle: Path, copy_of: Copy, pictures) -> None:
    import onnx
    from onnx import numpy_helper

    folder = copy_of(variable_bundle)
    model = onnx.load(folder / "edge.onnx")
    last = next(node for node in model.graph.node if "latent" in node.output)
    bias = next(one for one in model.graph.initializer if one.name == last.input[2])
    bias.CopyFrom(numpy_helper.from_array(np.full(64, np.inf, np.float32), bias.name))
    put(folder, "edge.onnx", model.SerializeToString())
    broken = EdgeEncoder(folder, 1)
    for options in ({}, {"max_bytes": 300}, {"target_bytes": 300}):
        with pytest.raises(errors.NotANumberError, match="not a finite number"):
            broken.encode(pictures[0], **options)


def test_a_graph_of_the_other_kind(variable_bundle: Path, bundle: Path, copy_of: Copy) -> None:
    import onnx

    folder = copy_of(variable_bundle)
    model = onnx.load(bundle / "edge.onnx")
    fingerprint = EdgeEncoder(variable_bundle, 1).bundle.fingerprint.hex()
    for entry in model.metadata_props:
        entry.value = fingerprint if entry.key == "fingerprint" else entry.value
    put(folder, "edge.onnx", model.SerializeToString())
    with pytest.raises(errors.InconsistentBundleError, match="without an output latent"):
        EdgeEncoder(folder, 1).encode(picture(64, 64))


def test_tune_compares_rounded_latents(variable_bundle: Path, copy_of: Copy, pictures) -> None:
    folder = copy_of(variable_bundle)
    edit_manifest(folder, default_level=4)
    edge = EdgeEncoder(folder, 1)
    deviation = edge_deviation(edge.bundle)
    latent = edge.graph_output(pictures[0][None])
    assert deviation({"latent": latent}, {"latent": latent}) == (0.0, False)
    assert deviation({"latent": latent}, {"latent": latent * 1.0000001})[1] is False
    far, too_far = deviation({"latent": latent}, {"latent": latent + 3})
    assert far > 0.5
    assert too_far
    with pytest.raises(errors.NotANumberError):
        deviation({"latent": latent}, {"latent": latent * np.nan})
    result = tune(edge.bundle, "edge", [pictures[0][None]], deviation, 1)
    assert result["candidates"][0]["accepted"]
    assert result["candidates"][0]["deviation"] == 0
