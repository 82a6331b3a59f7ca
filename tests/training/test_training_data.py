"""Datasets of images: decoded, cropped, held out, batched, and what happens to damaged images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import picture, spoil

from training.data import (
    Batched,
    Batches,
    Images,
    Normalisation,
    ReadableImages,
    SeededImages,
    UnreadableError,
    as_they_are,
    evaluation_images,
    read_image,
    split_held_out,
    training_images,
)
from training.folders import Damage, DamagedImageError, DataError, class_folder

Capture = pytest.CaptureFixture[str]


def test_processes_share_batches_and_each_image_has_its_own_random_numbers(data: Path) -> None:
    whole = list(Batches(20, 6, seed=3))
    shares = [list(Batches(20, 3, 3, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == whole
    assert len(whole) == 3
    assert whole != list(Batches(20, 6, seed=4))
    files = class_folder(data).files
    images = SeededImages(training_images(files, 32), 1)
    torch.manual_seed(0)
    first = images[5][0]
    torch.rand(9)
    assert torch.equal(first, images[5][0])
    assert not torch.equal(first, SeededImages(training_images(files, 32), 2)[5][0])


def test_crops_cover_what_they_are_asked_to(tmp_path: Path) -> None:
    """On a ramp from left to right, a crop's range of brightness is its part of the width."""
    (tmp_path / "ramp").mkdir()
    Image.fromarray(
        np.tile(np.linspace(0, 250, 126).astype(np.uint8)[None, :, None], (126, 1, 3))
    ).save(tmp_path / "ramp" / "0.png")

    def least_width(crop_area: float) -> float:
        images = training_images(class_folder(tmp_path).files, 64, crop_area)
        crops = [SeededImages(images, seed)[0][0][0] * 0.229 + 0.485 for seed in range(60)]
        return min(float(crop.max() - crop.min()) for crop in crops) * 255 / 250

    # With sides of 3 to 4, the most uneven, a crop of 0.7 of the image has 0.72 of its width, and
    # one of 0.08 has 0.24.
    assert least_width(0.7) > 0.69
    assert least_width(0.08) < 0.5


def test_what_is_held_out_is_never_trained_on(data: Path) -> None:
    files = class_folder(data).files
    whole = evaluation_images(files)
    kept, rest = (
        split_held_out(images, 5, keep)
        for images, keep in ((whole, True), (training_images(files, 32), False))
    )
    assert len(kept) == 5
    assert len(rest) == 19
    assert not set(kept.indices) & set(rest.indices)
    assert {whole.targets[index] for index in kept.indices} == {0, 1}


def test_images_of_224_are_evaluated_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "a.png")
    image, _ = evaluation_images(class_folder(tmp_path).files)[0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(
        image, ((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1), atol=1e-6
    )


def test_the_next_image_replaces_a_damaged_one_and_no_other_crop_changes(
    root: Path, capsys: Capture
) -> None:
    before = [
        SeededImages(training_images(class_folder(root).files, 32), 7)[index] for index in range(10)
    ]
    damaged = spoil(root)
    images = SeededImages(training_images(class_folder(root).files, 32), 7)
    places = [
        0,
        1,
        2,
        3,
        4,
        5,
        8,
        8,
        8,
        0,
    ]  # 6, 7 and 9 are damaged; after 9 comes 0
    for index, place in enumerate(places):
        assert torch.equal(images[index][0], before[place][0])
        assert images[index][1] == before[place][1]
    damage = Damage(skip=True)
    for workers in (0, 2):
        batches = list(Batched(images, damage, batch_size=5, num_workers=workers))
        assert [len(labels) for _, labels in batches] == [5, 5]
        assert damage.count_lately() == 3
    assert sorted(damage.files) == sorted(map(str, damaged))
    damage.report()
    err = capsys.readouterr().err
    assert sum(line.startswith("left out: ") for line in err.splitlines()) == 3
    assert "3 damaged images were left out" in err


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_refused_by_name(root: Path, workers: int) -> None:
    spoil(root)
    images = SeededImages(training_images(class_folder(root).files, 32), 0)
    with pytest.raises(
        DamagedImageError, match=r"dog/1\.png is damaged or cut short .*give --skip_damaged"
    ) as caught:
        list(Batched(images, Damage(skip=False), batch_size=10, num_workers=workers))
    assert "Traceback" not in str(caught.value)


def test_damaged_images_are_left_out_of_measurements(root: Path) -> None:
    spoil(root)
    images = evaluation_images(class_folder(root).files, 32, 32)
    batches = list(Batched(ReadableImages(images), Damage(skip=True), batch_size=4))
    assert [labels.tolist() for _, labels in batches] == [[0] * 4, [0, 1], [1]]


def test_a_folder_without_one_good_image_is_given_up(tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / "a" / f"{index}.png").write_bytes(b"none")
    images = SeededImages(training_images(class_folder(tmp_path).files, 32), 0)
    with pytest.raises(DataError, match="images in a row cannot be read"):
        list(Batched(images, Damage(skip=True), batch_size=3))


def test_training_sees_images_as_the_edge_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.images.preprocess import preprocess

    rng = np.random.default_rng(0)
    wide = Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(rng.integers(0, 65536, (16, 24), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(rng.integers(0, 256, (16, 24, 4), dtype=np.uint8)).save(tmp_path / "clear.png")
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(np.asarray(read_image(path)), preprocess(path, as_is=True)), path
    Image.fromarray(rng.random((16, 16), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UnreadableError, match="levels of mode F"):
        read_image(tmp_path / "float.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableError, match=r"deep\.png has too many pixels"):
        read_image(tmp_path / "deep.png")


def test_stronger_augmentation_and_another_normalisation(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (255, 0, 51)).save(tmp_path / "a.png")
    files = [(tmp_path / "a.png", 0)]
    half = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def colour(images: Images) -> list[float]:
        return images[0][0].mean((1, 2)).tolist()

    for images in (
        training_images(files, 32, normalisation=half),
        evaluation_images(files, 32, 32, half),
        as_they_are(files, half),
    ):
        assert colour(images) == pytest.approx([1, -1, -0.6])
    flipped: list[tuple[int, int]] = []

    def invert(image: Image.Image) -> Image.Image:
        flipped.append(image.size)
        return image.point(lambda value: 255 - value)

    found = colour(training_images(files, 16, augment=[invert], normalisation=half))
    assert found == pytest.approx([-1, 1, 0.6])
    assert flipped == [(16, 16)], "the crop is augmented, not the whole image"
