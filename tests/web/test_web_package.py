"""The npm package in Node: the same bytes as the Python engine `native`, and its errors.

Python writes pictures and their feature files, and web/test/package.test.js compares.
"""

import gzip
import json
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime import EdgeEncoder, __version__

WEB = Path(__file__).resolve().parent.parent.parent / "web"
# Width, height, bytes a pixel, and whether they are encoded as they are.
CASES = [
    (224, 224, 3, True),
    (8, 8, 3, True),
    (296, 64, 4, True),
    (640, 480, 3, False),
    (640, 480, 4, False),
    (90, 700, 3, False),  # rows first or columns first makes a difference here
    (1, 1, 4, False),
    (2000, 2, 3, False),
    (257, 256, 4, False),
]


def _picture(golf_ball: NDArray[np.uint8], width: int, height: int, channels: int) -> NDArray:
    """A part of the picture, repeated as often as needed; all alphas if it has four channels."""
    rows, columns = np.arange(height) % 300, np.arange(width) % 300
    rgb = golf_ball[:300, :300][rows][:, columns]
    if channels == 3:
        return np.ascontiguousarray(rgb)
    alpha = np.random.default_rng(width).integers(0, 256, (height, width, 1), dtype=np.uint8)
    return np.ascontiguousarray(np.concatenate([rgb, alpha], axis=2))


# What is asked of a variable-rate bundle, in Python and in JavaScript.
BUDGETS = [
    ({}, {}),
    ({"rate": 0}, {"rate": 0}),
    ({"rate": 14.4}, {"rate": 14.4}),
    ({"max_bytes": 600}, {"maxBytes": 600}),
    ({"max_bytes": 40}, {"maxBytes": 40}),
    ({"rate": 3, "max_bytes": 4000}, {"rate": 3, "maxBytes": 4000}),
]


def _write_variable(bundle: Path, picture: NDArray, folder: Path) -> dict[str, object]:
    """Write Python's files of a picture; gives what package.test.js is told of them."""
    encoder = EdgeEncoder(bundle, threads=1, provider="native")
    for index, (asked, _) in enumerate(BUDGETS):
        data = encoder.encode(picture, as_is=True, **asked)
        (folder / f"variable{index}.feat").write_bytes(data)
    stream = encoder.encode_batch([picture] * 2, as_is=True, target_bytes=300)
    for index, data in enumerate(stream):
        (folder / f"stream{index}.feat").write_bytes(data)
    return {"bundle": str(bundle), "cases": [{"asked": asked} for _, asked in BUDGETS]}


def test_in_node(
    web_build: Path,
    node: str,
    bundle: Path,
    variable_bundle: Path,
    golf_ball: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    encoder = EdgeEncoder(bundle, threads=1, provider="native")
    cases = []
    for index, (width, height, channels, as_is) in enumerate(CASES):
        picture = _picture(golf_ball, width, height, channels)
        (tmp_path / f"{index}.pixels").write_bytes(picture.tobytes())
        image = picture if channels == 3 else Image.fromarray(picture, "RGBA")
        (tmp_path / f"{index}.feat").write_bytes(encoder.encode(image, as_is=as_is))
        cases.append({"width": width, "height": height, "asIs": as_is})
    variable = _write_variable(variable_bundle, _picture(golf_ball, *CASES[0][:3]), tmp_path)
    known = {"bundle": str(bundle), "cases": cases, "variable": variable}
    (tmp_path / "cases.json").write_text(json.dumps(known))
    done = subprocess.run(
        [node, "--test", "--test-reporter=tap", web_build / "test" / "package.test.js"],
        env={"EDGECLOUD_CASES": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
    assert found, done.stdout
    assert int(found[1]) >= len(CASES)


def test_the_module_is_small_and_needs_little(web_build: Path, node: str) -> None:
    """200 KB compressed is the limit, and two functions are all that it imports."""
    module = (web_build / "dist" / "edgecloud.wasm").read_bytes()
    assert struct.unpack("<4sI", module[:8]) == (b"\0asm", 1)
    assert len(gzip.compress(module)) < 200_000
    script = (
        "const module = new WebAssembly.Module(require('fs').readFileSync(process.argv[1]));"
        "console.log(WebAssembly.Module.imports(module).map(({name}) => name).join(' '))"
    )
    done = subprocess.run(
        [node, "-e", script, web_build / "dist" / "edgecloud.wasm"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["emscripten_notify_memory_growth", "proc_exit"]


def test_the_package_is_of_this_release(web_build: Path) -> None:
    package = json.loads((WEB / "package.json").read_text())
    assert package["version"] == __version__
    assert package["exports"]["."] == {"types": package["types"], "default": "./dist/index.js"}
    for name in ("index.js", "index.d.ts", "worker.js", "edgecloud.wasm"):
        assert (web_build / "dist" / name).is_file()


def test_all_codes_of_errors_are_typed() -> None:
    """Each code that the sources give is in the types, and nothing else is."""
    source = "".join(path.read_text() for path in (WEB / "src").glob("*.js"))
    given = set(re.findall(r'(?:EncoderError\(\s*|refuse\(|code: |#end\()"([a-z_]+)"', source))
    given |= {"bad_file"}  # through a variable, as the C library's are
    types = (WEB / "src" / "index.d.ts").read_text()
    listed = set(re.findall(r'^  \| "([a-z_]+)"', types, re.MULTILINE))
    explained = set(re.findall(r"^ \* - `([a-z_]+)`:", types, re.MULTILINE))
    assert listed == explained
    assert given <= listed


def test_bundlers_find_no_module_of_node() -> None:
    """webpack and esbuild stop at one when they build for a browser."""
    sources = list((WEB / "src").glob("*.js"))
    assert len(sources) >= 5
    for source in sources:
        assert not re.search(r"""(from|import\()\s*["'`]node:""", source.read_text()), source.name
