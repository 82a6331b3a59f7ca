"""Which images folders and patterns name, and what is passed over."""

import json
import os
import socket
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from commands import Capture
from photo_folder import NAMES, run
from PIL import Image

from runtime import errors
from runtime.cli import edge_encode as edge_cli
from runtime.images.find import TargetError, describe, find, image_suffixes, to_files, to_rows

pytestmark = pytest.mark.usefixtures("default_bundle")


def test_patterns(photos: Path) -> None:
    def names(pattern: str) -> list[str]:
        return [name for _, name in find([f"{photos}/{pattern}"])]

    assert names("*.jpg") == ["b.jpg", "z[1].jpg"]
    assert names("[ab].*") == ["a.PNG", "b.jpg"]
    assert names("sub/*.jpeg") == ["c.jpeg"]
    assert names("**/*.webp") == ["sub/deep er/d.webp"]
    assert names("z[1].jpg") == ["z[1].jpg"], "the name of a file is not a pattern"
    assert names("s?b/**/*.webp") == ["sub/deep er/d.webp"]
    assert [image for image, _ in find([f"{photos}/sub", f"{photos}/b.jpg"])] == [
        str(photos / name) for name in ("sub/c.jpeg", "sub/deep er/d.webp", "b.jpg")
    ]


def test_where_feature_files_go(photos: Path, tmp_path: Path) -> None:
    def jobs(arguments: list[str], output: str) -> list[str]:
        return [target for _, target in to_files(arguments, find(arguments), output)]

    one = f"{photos}/b.jpg"
    assert jobs([one], "feat.bin") == ["feat.bin"]
    assert jobs([one], "new/") == ["new/b.bin"]
    assert jobs([one], str(tmp_path)) == [f"{tmp_path}/b.bin"]
    assert jobs([f"{photos}/b.*"], "new") == ["new/b.bin"], "a pattern of one image is a pattern"
    assert jobs(["-"], "-") == ["-"]
    for arguments in ([str(photos)], [f"{photos}/b.*"], [one, one]):
        with pytest.raises(TargetError, match="standard output takes one"):
            jobs(arguments, "-")
    with pytest.raises(
        TargetError,
        match=r"several images would be written to new/b\.bin: encode them to different folders",
    ):
        jobs([one, f"{photos}/b.png"], "new")
    with pytest.raises(TargetError, match=r"have the key b\.jpg"):
        to_rows(find([one, one]))


def test_an_image_is_what_pillow_opens() -> None:
    found = image_suffixes()
    assert {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".jpe",
        ".mpo",
        ".png",
        ".webp",
        ".tga",
        ".j2k",
        ".jp2",
        ".tiff",
        ".qoi",
        ".ico",
    } < found
    # Programs that draw, films, formats without a decoder, and formats that are only written.
    assert found.isdisjoint(
        {
            ".eps",
            ".ps",
            ".wmf",
            ".emf",
            ".mpg",
            ".h5",
            ".grib",
            ".bufr",
            ".pdf",
            ".palm",
            ".heic",
            "",
            ".txt",
        }
    )


def test_folders_and_patterns_follow_the_same_rules(photos: Path) -> None:
    for name in ("e.jfif", "f.J2K", "g.tga", ".trash/sub/h.jpg", "sub/.hidden.jpg"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"x")
    for name in ("x.heic", "y.HEIC", "z.heif", "no", "ends.", "a name. With spaces"):
        (photos / "sub" / name).write_bytes(b"x")
    os.mkfifo(photos / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as made:
        # An absolute name may be too long for a socket.
        made.bind(os.path.relpath(photos / "s.png"))
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / "round.jpg").symlink_to("round.jpg")
    (photos / "again").symlink_to("sub")
    (photos / "sub" / "above").symlink_to("..")
    (photos / "link.jpg").symlink_to("b.jpg")
    expected = sorted([*NAMES, "e.jfif", "f.J2K", "g.tga", "link.jpg"])
    passed_over = {
        ".heic": 2,
        ".heif": 1,
        ".txt": 1,
        "no suffix": 3,
        "pipe": 1,
        "socket": 1,
        "broken link": 2,
        "linked folder": 2,
    }
    for argument in ("", "**", "**/*", "**/**/*"):
        counts: Counter[str] = Counter()
        assert [name for _, name in find([str(photos / argument)], counts)] == expected
        assert counts == passed_over, argument


def test_hidden_files_are_found_where_the_pattern_has_their_dot(photos: Path) -> None:
    def names(pattern: str) -> list[str]:
        return [name for _, name in find([f"{photos}/{pattern}"])]

    assert names(".*.jpg") == ["._b.jpg"]
    assert names(".trash/*.jpg") == ["e.jpg"]
    assert names(".tr*/*") == [".trash/e.jpg"]
    assert names("[s.]*/c.*") == ["sub/c.jpeg"], "a dot in brackets does not count, as in a shell"
    (photos / "linked").symlink_to("sub")
    assert names("l*/*.jpeg") == ["linked/c.jpeg"], "other parts than ** follow links"
    assert names("*/deep er/*") == ["linked/deep er/d.webp", "sub/deep er/d.webp"]


def test_a_suffix_in_a_pattern_is_taken(photos: Path, capsys: Capture) -> None:
    (photos / "x.dat").write_bytes((photos / "b.jpg").read_bytes())
    assert [name for _, name in find([f"{photos}/*.dat"])] == ["x.dat"]
    (photos / "x.heic").write_bytes(bytes(20) + b"heic")
    status, rows, _ = run(capsys, f"{photos}/*.heic", "-o", photos.parent / "out")
    assert status == 1
    assert "convert it to JPEG" in rows[0]["error"]


def test_heic_pictures_are_images_where_their_decoder_is_installed(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = Image.EXTENSION.copy()
    monkeypatch.setattr(Image, "EXTENSION", registered)
    decoder = types.SimpleNamespace(
        register_heif_opener=lambda: registered.update({".heic": "PNG"})
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", decoder)
    image_suffixes.cache_clear()
    try:
        find([f"{photos}/named.heic"])
        assert registered[".heic"] == "PNG", "for a file that is named, too"
        (photos / "x.heic").touch()
        assert f"{photos}/x.heic" in dict(find([str(photos)]))
    finally:
        image_suffixes.cache_clear()


def test_what_is_passed_over_is_reported_once(
    photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name in ("x.heic", "sub/y.HEIC"):
        (photos / name).touch()
    note = (
        "edge-encode: passed over 3 that are no image files (.heic 2, .txt 1); "
        "convert .heic and .heif to JPEG, or install pillow-heif"
    )
    assert edge_cli.main([str(photos), "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.splitlines() == [note]
    status, rows, err = run(capsys, photos, "-o", tmp_path / "out")
    assert (status, len(rows)) == (0, len(NAMES))
    assert json.loads(err.splitlines()[0]) == {"passed_over": {".heic": 2, ".txt": 1}}
    assert describe(Counter({".txt": 1})) == "passed over 1 that is no image file (.txt 1)"
    many = Counter({f".{index}": 9 - index for index in range(8)})
    assert (
        describe(many)
        == "passed over 44 that are no image files (.0 9, .1 8, .2 7, .3 6, .4 5, others 9)"
    )


def test_a_folder_or_a_pattern_without_images(tmp_path: Path, capsys: Capture) -> None:
    for argument in (str(tmp_path), f"{tmp_path}/*.jpg"):
        with pytest.raises(errors.ImageNotFoundError, match="no image in"):
            find([argument])
    assert edge_cli.main([str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    assert "no image in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.txt").touch()
    with pytest.raises(
        errors.ImageNotFoundError,
        match=r"no image in .*, passed over 1 that is no image file \(\.txt 1\): name a",
    ):
        find([str(tmp_path)])


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder"
)
def test_a_folder_that_cannot_be_read_is_an_error(photos: Path) -> None:
    (photos / "sub").chmod(0)
    try:
        for argument in (photos, photos / "**" / "*.jpg"):
            with pytest.raises(PermissionError):
                find([str(argument)])
    finally:
        (photos / "sub").chmod(0o755)


def test_a_pattern_in_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(
        errors.ImageNotFoundError,
        match=r"no image in .*nothing/\*\.jpg: name a folder or a pattern that has some",
    ):
        find([str(tmp_path / "nothing" / "*.jpg")])
