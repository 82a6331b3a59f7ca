"""Image files that edge-encode in C++ reads, of all kinds, and ways to run it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from made_images import picture, saved
from PIL import Image

GOLF_BALL = Path(__file__).resolve().parents[2] / "docs" / "demo" / "golf_ball.jpg"
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def photo(width: int = 300, height: int = 280) -> Image.Image:
    """A part of the demo's image."""
    return Image.open(GOLF_BALL).crop((100, 60, 100 + width, 60 + height))


def _jpegs() -> dict[str, bytes]:
    """JPEGs of all kinds that libjpeg and Pillow read alike."""
    files = {"golf ball": GOLF_BALL.read_bytes()}

    def add(name: str, image: Image.Image, **options: object) -> None:
        files[name] = saved(image, "JPEG", **options).getvalue()

    part = photo()
    add("grey", part.convert("L"))
    add("cmyk", part.convert("CMYK"), quality=90)
    add("rgb", part, keep_rgb=True)
    add("progressive", part, progressive=True)
    add("grey progressive", part.convert("L"), progressive=True)
    add("restarts", part, restart_marker_blocks=3)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        add(subsampling, part, subsampling=subsampling)
    for width, height in ((1, 1), (1, 90), (77, 1), (255, 257), (333, 31), (17, 8)):
        add(f"{width}x{height}", photo(width, height))
    add("panorama", Image.fromarray(np.tile(np.asarray(photo(600, 9)), (1, 20, 1))))
    return files


def _pnms() -> dict[str, bytes]:
    colours, greys = picture(90, 70), picture(90, 70)[..., 0]
    plain = " ".join(map(str, colours.ravel())).encode()
    return {
        "P6": saved(Image.fromarray(colours), "PPM").getvalue(),
        "P5": saved(Image.fromarray(greys), "PPM").getvalue(),
        "P3": b"P3\n90 # columns\n70 255\n" + plain,
        "P2": b"P2 90\t70\n255\n" + b"\n".join(b"%d" % grey for grey in greys.ravel()) + b"\n",
        "comments": b"P6 #a\n# b\n90 70#c\r 255\n" + colours.tobytes(),
        "few levels": b"P6 90 70 100\n" + (colours // 2).tobytes(),
        "few plain levels": b"P3 90 70 9\n" + " ".join(map(str, colours.ravel() // 27)).encode(),
        "levels above the largest": b"P5 90 70 200\n" + greys.tobytes(),
        "one pixel": b"P5 1 1 255\n\x80",
        "bytes behind": b"P5 1 1 255\n\x80 and more",
    }


JPEGS, PNMS = _jpegs(), _pnms()
