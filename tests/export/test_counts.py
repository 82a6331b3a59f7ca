"""Counts of symbols, tables that are fitted to them, and `python -m export --refit`."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_tables import skewed_tables
from numpy.typing import NDArray
from PIL import Image

from export import cli as command
from export.counts import Counts, CountsError, count, fit_tables, symbols_of, thresholds_for
from export.images import NoImagesError, Reading, synthetic_images
from export.inputs import find_counts
from export.request import Request
from export.states import CountsSource
from runtime import CloudDecoder, EdgeEncoder
from runtime.codec.bundle import Bundle
from runtime.codec.coder import Tables
from runtime.codec.feature_file import Profile, parse
from training.folders import Damage, DamagedImageError

SHA = "ab" * 32


def smooth_symbols(
    images: int, channels: int = 3, side: int = 28, seed: int = 0
) -> NDArray[np.int16]:
    """[images, channels, side, side]: neighbours are similar, and the last channel is 0."""
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(images, channels, side + 4, side + 4))
    mean = sum(field[:, :, i : side + i, j : side + j] for i in range(4) for j in range(4)) / 4
    symbols = np.rint(mean).astype(np.int16)
    symbols[:, -1] = 0
    return symbols


def size_of(tables: Tables, images: NDArray[np.int16], profile: Profile = Profile.STATIC) -> float:
    for one in images:
        assert np.array_equal(
            tables.decode(tables.encode(one, profile), one.shape[1:], profile), one
        )
    return float(np.mean([len(tables.encode(one, profile)) for one in images]))


def test_fitted_tables_are_smaller_on_other_images_and_smallest_by_context() -> None:
    own = Tables(*skewed_tables(3))
    fitted = fit_tables(
        own, count([smooth_symbols(30), smooth_symbols(20, seed=1)], own, SHA, "made up")
    )
    held = smooth_symbols(20, seed=2)
    assert list(fitted.contexts) == [0, 1]
    assert size_of(fitted, held, Profile.CONTEXT) < 0.9 * size_of(fitted, held) < size_of(own, held)


def test_symbols_without_a_pattern_get_no_context_tables() -> None:
    own = Tables(*skewed_tables(3))
    noise = np.random.default_rng(0).integers(-2, 3, (30, 3, 28, 28)).astype(np.int16)
    assert not fit_tables(own, count([noise], own, SHA, "noise")).contexts


@pytest.mark.parametrize("far", [5, 300, 32767])
def test_every_symbol_can_still_be_coded(far: int) -> None:
    own = Tables(*skewed_tables(3))
    symbols = smooth_symbols(3)
    symbols[0, 0, 5, 5] = far
    fitted = fit_tables(own, count([symbols], own, SHA, "made up"))
    assert max(map(len, fitted.cdfs)) <= 257
    symbols[0, 1, 7, :9] = [-32767, 32767, 100, -100, 9, -9, 63, 64, 0]
    size_of(fitted, symbols, Profile.CONTEXT if fitted.contexts else Profile.STATIC)


def test_few_images_hardly_move_the_tables() -> None:
    """The model's own table weighs as much as the symbols of about five images."""
    own = Tables(*skewed_tables(1))
    fitted = fit_tables(own, count([np.zeros((1, 1, 4, 4), np.int16)], own, SHA, "one"))
    assert np.abs(np.diff(fitted.cdfs[0].astype(int)) - np.diff(own.cdfs[0].astype(int))).max() < 10


@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        (0.3, (-1, 0, 1, 2)),
        (1.3, (-1, 0, 1, 2)),
        (2.6, (-3, -1, 2, 4)),
        (4.0, (-4, -1, 2, 5)),
        (13.0, (-15, -5, 6, 16)),
    ],
)
def test_thresholds_follow_the_spread(spread: float, expected: tuple[int, ...]) -> None:
    weights = np.exp(-(np.arange(-60, 61) ** 2) / (2 * spread**2))
    frequencies = np.maximum(1, 60000 * weights / weights.sum()).astype(int)
    cdf = np.cumsum([0, *frequencies, 65536 - frequencies.sum()])
    assert thresholds_for(cdf.astype(np.uint32), -60) == expected
    assert thresholds_for(cdf.astype(np.uint32), -50) == tuple(bound + 10 for bound in expected)


def test_counts_survive_their_file(tmp_path: Path) -> None:
    own = Tables(*skewed_tables(3))
    counts = count([smooth_symbols(4)], own, SHA, "made up")
    (tmp_path / "counts.json").write_text(counts.to_json())
    again = Counts.read(tmp_path / "counts.json", SHA)
    assert again.to_json() == counts.to_json()
    assert fit_tables(own, again).digest() == fit_tables(own, counts).digest()
    assert sum(int(channel.counts.sum()) for channel in again.channels) == 4 * 3 * 28 * 28


HEAD = '{"bottleneck_sha256": "x", "images": 1, "source": "", "channels": '
CHANNEL = '[{"first": 0, "thresholds": [1, 2, 3, 4], "counts": '


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        HEAD + "5}",
        HEAD + '[{"first": 0, "thresholds": [1], "counts": {}}]}',
        HEAD + CHANNEL + '{"25": [1]}}]}',
        HEAD + CHANNEL + '{"0": [-1]}}]}',
        HEAD + CHANNEL + '{"0": [1e30]}}]}',
        HEAD + CHANNEL + '{"0": [1, 2], "1": [3]}}]}',
    ],
)
def test_bad_counts_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text(text)
    with pytest.raises(CountsError, match=r"not understood.*--refit"):
        Counts.read(tmp_path / "counts.json", SHA)


def test_counts_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    own = Tables(*skewed_tables(3))
    counts = count([smooth_symbols(1)], own, SHA, "made up")
    (tmp_path / "counts.json").write_text(counts.to_json())
    with pytest.raises(CountsError, match=r"abababab.*cdcdcdcd.*--own-tables"):
        Counts.read(tmp_path / "counts.json", "cd" * 32)
    with pytest.raises(CountsError, match="3 channels, the model has 2"):
        fit_tables(Tables(*skewed_tables(2)), counts)


def test_no_images_to_count(tmp_path: Path, random_bundle: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(NoImagesError, match="no image could be read"):
        count(
            symbols_of(random_bundle / "edge.onnx", [tmp_path / "empty.png"]),
            Tables(*skewed_tables(64)),
            SHA,
            "none",
        )


def test_a_damaged_image_is_refused_by_name_or_left_out_and_counted(
    tmp_path: Path, random_bundle: Path
) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, image in zip(paths, synthetic_images(3, 32), strict=True):
        Image.fromarray(image).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    refusing = Reading(as_is=True, damage=Damage(False, "--skip-damaged"))
    with pytest.raises(DamagedImageError, match=r"1\.png is damaged .*give --skip-damaged"):
        list(symbols_of(random_bundle / "edge.onnx", paths, refusing))
    reading = Reading(as_is=True)
    batches = symbols_of(random_bundle / "edge.onnx", paths, reading)
    assert sum(len(symbols) for symbols in batches) == 2
    assert list(reading.damage.files) == [str(paths[1])]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, image in enumerate(synthetic_images(6, side=64)):
        Image.fromarray(image).save(folder / f"{index}.png")
    Image.fromarray(image[:40]).save(folder / "of another size.png")
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder


@pytest.mark.usefixtures("ready_graphs")
def test_export_refits_keeps_counts_and_uses_them_again(
    random_checkpoint: Path,
    random_bundle: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`random_bundle` is of the same checkpoint, with the model's own tables."""
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(random_checkpoint.read_bytes())
    beside = tmp_path / "model.counts.json"

    def export(name: str, *options: str) -> dict:
        arguments = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / name), *options]
        assert command.main(["ours_n0", *arguments]) == 0
        return json.loads((tmp_path / name / "manifest.json").read_text())

    first = export(
        "first", "--refit", str(pictures), "--as-is", "--counts", str(beside), "--skip-damaged"
    )
    assert first["tables"]["images"] == 7
    assert first["tables"]["source"] == pictures.name
    captured = capsys.readouterr()
    assert "fitted to 7 images" in captured.out
    assert "1 damaged image was left out: " in captured.err
    again, own = export("again"), json.loads((random_bundle / "manifest.json").read_text())
    assert again["fingerprint"] == first["fingerprint"] != own["fingerprint"]
    assert own["tables"] is None
    assert "compressai.json" not in own["files"]
    assert (
        Bundle.load(tmp_path / "again").compressai_tables().digest()
        == Bundle.load(random_bundle).tables.digest()
    )
    # Both ends agree on the symbols, in the profile of either bundle.
    picture = pictures / "3.png"
    encoder = EdgeEncoder(tmp_path / "again", 1)
    assert (
        (encoder.profile is Profile.CONTEXT)
        == again["small"]
        == bool(again["tables"]["context_channels"])
    )
    data = encoder.encode(picture)
    assert parse(data).profile is encoder.profile
    own_data = EdgeEncoder(random_bundle, 1).encode(picture)
    assert np.array_equal(
        CloudDecoder(tmp_path / "again", 1).bundle.decode(data),
        CloudDecoder(random_bundle, 1).bundle.decode(own_data),
    )
    # Counts of another checkpoint are an error, unless --own-tables leaves them out.
    request = Request(model="ours_n0", checkpoint=checkpoint, out=tmp_path, own_tables=True)
    assert find_counts(request, "0" * 64) == CountsSource()
    beside.write_text(beside.read_text().replace(first["bottleneck_sha256"], "0" * 64))
    assert (
        command.main(["ours_n0", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "stale")])
        == 1
    )
    assert "--own-tables" in capsys.readouterr().err
    assert not (tmp_path / "stale").exists()


def test_small_files_cannot_be_asked_of_a_model_without_counts(
    random_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is said before any graph is exported."""
    monkeypatch.setattr("export.stages.export_edge", lambda *_: pytest.fail("a graph was exported"))
    arguments = [
        "ours_n0",
        "--checkpoint",
        str(random_checkpoint),
        "--out",
        str(tmp_path / "out"),
        "--small",
    ]
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert "random.counts.json, which small files need: give images to count with --refit" in error
    with pytest.raises(SystemExit):
        command.main([*arguments, "--own-tables"])


@pytest.mark.usefixtures("ready_graphs")
def test_small_files_cannot_be_asked_of_counts_that_gain_nothing(
    random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One position of the latent has no neighbours, which contexts are made of."""
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    counted = ["--refit", str(tmp_path), "--as-is", "--small", "--out", str(tmp_path / "out")]
    assert command.main(["ours_n0", "--checkpoint", str(random_checkpoint), *counted]) == 1
    assert "no channel gains by context tables" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_defaults_counts_are_of_its_checkpoint(bundle: Path) -> None:
    """A plain clone exports tables that are fitted to training images."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["tables"]["images"] == 9469
    assert manifest["tables"]["source"] == "train"
    assert manifest["small"] is True
