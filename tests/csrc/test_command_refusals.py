"""edge-encode in C++ refuses what the Python command refuses, in the same words."""

from io import BytesIO
from pathlib import Path

import pytest
from cpp_command import GOLF_BALL, JPEGS, PNMS, Run, photo
from made_images import saved
from PIL import Image

from runtime import EdgeEncoder
from runtime.errors import ImageError

USAGE = [
    (["x.jpg"], "say where the feature files go, with -o"),
    (["-o", "x"], "the following arguments are required: IMAGE"),
    (["x.jpg", "-o", ""], "the name of the output is empty: name a file or a folder"),
    (["x.jpg", "-o"], "argument -o: expected one argument"),
    (["x.jpg", "--bundle"], "argument --bundle: expected one argument"),
    (["x.jpg", "-o", "-", "--json"], "standard output carries the feature file: use --json"),
    (["x.jpg", "-o", "/dev/stdout", "--json"], "standard output carries the feature file"),
    (["x.jpg", "y.jpg", "-o", "-"], "standard output takes one feature file: name a folder"),
    (["a/x.jpg", "b/x.png", "-o", "d/"], "several images would be written to d/x.bin: encode them"),
    (["x.jpg", "y.jpg", "-o", str(GOLF_BALL)], "is a file: name a folder for several images"),
    (["x.jpg", "-o", "y", "--threads", "0"], "argument --threads: '0' is not a whole number from"),
    (["x.jpg", "-o", "y", "--raw", "640"], "argument --raw: '640' is not WIDTHxHEIGHT"),
    (["x.jpg", "-o", "y", "--raw", "0x5"], "argument --raw: '0' is not a whole number from 1 to"),
    *(
        (["x.jpg", "-o", "y", "--rate", text], f"argument --rate: '{text}' is not a number from 0")
        for text in ("16", "-1", "nan", "", "0x3", "1 ")
    ),
    (["x.jpg", "-o", "y", "--max-bytes", "0"], "argument --max-bytes: '0' is not a whole number"),
    (["x.jpg", "-o", "y", "--target-bytes", "0.5"], "argument --target-bytes: '0.5' is not a nu"),
    (["x.jpg", "-o", "y", "--rate", "3", "--target-bytes", "400"], "leave out one of both"),
    (["x.jpg", "-o", "y", "--max-bytes", "3", "--target-bytes", "4"], "--max-bytes is below"),
    (["x.jpg", "-o", "y", "--frob"], "unrecognized arguments: --frob"),
    (["x.jpg", "-o", "y", "-q"], "unrecognized arguments: -q"),
    *(
        (["x.jpg", "-o", "y", *option], f"{option[0]} is an option of the Python command alone")
        for option in (
            ["--pack", "x.parquet"],
            ["--workers", "2"],
            ["--resume"],
            ["--tune"],
            ["--provider", "cpu"],
        )
    ),
]


@pytest.mark.parametrize(("arguments", "text"), USAGE)
def test_wrong_usage(run: Run, tmp_path: Path, arguments: list[str], text: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(b"usage: edge-encode ")
    assert done.stderr.decode().splitlines()[-1].startswith(f"edge-encode: error: {text}") or (
        text in done.stderr.decode().splitlines()[-1]
    )
    assert done.stdout == b""
    assert list(tmp_path.iterdir()) == []


def _damaged() -> dict[str, bytes]:
    whole = JPEGS["golf ball"]
    middle = len(whole) // 2
    # Its header claims 65,280 x 65,280 pixels.
    bomb = bytearray(whole)
    at = bomb.index(b"\xff\xc0") + 5
    bomb[at : at + 4] = b"\xff\x00\xff\x00"
    return {
        "JPEG of many pixels": bytes(bomb),
        "cut": whole[:middle],
        "overwritten": whole[:middle] + bytes(2000) + whole[middle + 2000 :],
        "unfinished": JPEGS["progressive"][: len(JPEGS["progressive"]) * 2 // 3],
        "header alone": whole[:100],
        "cut P6": PNMS["P6"][:-1],
        "cut P2": PNMS["P2"][:-4],
        "level too large": b"P2 1 1 9\n10",
        "no number": b"P2 2 1 9\n1 x",
        "comment in a number": b"P2 2 1 9\n1#\n2",
        "long number": b"P2 1 1 9\n" + b"1" * 30,
        "no largest level": b"P5 1 1 0\n1",
        "large largest level": b"P5 1 1 65536\n12",
        "long header": b"P5 1 1111111111111 255\n1",
        "end of header": b"P6 1",
        "nothing": b"",
        "text": b"an image",
        "a lie about its size": b"P6 13000 13000 255\n12",
        "many pixels": b"P6 20000 20000 255\n12",
        "sides that overflow": b"P6 999999999 999999999 255\n12",
    }


@pytest.mark.parametrize("name", _damaged())
def test_what_is_no_whole_image_is_refused_as_in_python(
    run: Run, native: EdgeEncoder, tmp_path: Path, name: str
) -> None:
    (tmp_path / "bad").write_bytes(_damaged()[name])
    with pytest.raises(ImageError) as refused:
        native.encode(tmp_path / "bad")
    done = run("bad", GOLF_BALL, "-o", "out")
    assert done.returncode == 1, "and the other image is encoded"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["golf_ball.bin"]
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    # The same words before the reason in parentheses, which here is libjpeg's and there Pillow's.
    python = str(refused.value).removeprefix(f"{tmp_path}/").partition(" (")[0]
    if "that Pillow can read" in python:
        python = "bad is not an image that this command can read"
    assert lines[0].startswith(f"edge-encode: {python}")


def test_what_only_python_reads_is_refused(run: Run) -> None:
    for data in (saved(photo(), "PNG").getvalue(), saved(photo(), "WEBP").getvalue()):
        done = run("-", "-o", "-", stdin=data)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"standard input is not an image that this command can read" in done.stderr
        assert b"use the Python command" in done.stderr
    done = run("-", "-o", "-", stdin=b"P5 1 1 65535\n12")
    assert b"levels up to 65535, and this command reads those up to 255" in done.stderr
    done = run("**/*.jpg", "-o", "out")
    assert b"has **, which the Python command alone knows" in done.stderr


def test_missing_things(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").touch()
    for arguments, text in (
        (["missing.jpg", "-o", "x"], "no such file: missing.jpg"),
        (["", "-o", "x"], "no such file: a name of no characters"),
        (["x" * 300, "-o", "x"], "no such file, for the name is too long"),
        (["empty", "-o", "x"], "no image in empty, passed over 1 that is no JPEG or PNM file "),
        (["*.jpg", "-o", "x"], "no image in *.jpg: name a folder or a pattern that has some"),
        ([GOLF_BALL, "-o", "x", "--bundle", "gone"], "gone"),
        ([GOLF_BALL, "-o", "x", "--bundle", "empty"], "empty"),
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert text in done.stderr.decode()
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("size", [(1, 90), (1064, 1000)])
def test_sizes_that_cannot_be_encoded_as_they_are(
    run: Run, native: EdgeEncoder, size: tuple[int, int]
) -> None:
    data = saved(Image.open(GOLF_BALL).resize(size), "JPEG").getvalue()
    with pytest.raises(ImageError) as refused:
        native.encode(BytesIO(data), as_is=True)
    done = run("-", "-o", "-", "--as-is", stdin=data)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode() == f"edge-encode: standard input: {refused.value}\n"


def test_a_damaged_bundle(run: Run, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for name in ("edge.tables", "edge.weights"):
        data = bytearray((bundle / name).read_bytes())
        data[-1] ^= 1
        (tmp_path / "broken" / name).write_bytes(data)
    done = run(GOLF_BALL, "-o", "-", "--bundle", "broken")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"export the bundle again" in done.stderr
