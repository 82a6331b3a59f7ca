"""The C library writes and reads what Python writes and reads, and refuses what Python refuses."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from c_library import (
    BAD_ARGUMENT,
    BAD_BUNDLE,
    BAD_FEATURE_FILE,
    BAD_FILE,
    BAD_IMAGE,
    OTHER_BUNDLE,
    CBundle,
    CError,
    CLibrary,
    with_checksum,
)
from numpy.typing import NDArray

import runtime
from runtime import EdgeEncoder
from runtime.codec.bundle import EDGE_TABLES, EDGE_WEIGHTS, Bundle
from runtime.codec.feature_file import Profile, parse
from runtime.errors import FeatureFileError
from runtime.images.preprocess import preprocess

PROJECT = Path(__file__).resolve().parent.parent.parent
GOLDEN = PROJECT / "tests" / "golden"
FILES = sorted([*GOLDEN.glob("*.bin"), *GOLDEN.glob("*/*.bin")])


def test_ctest_passes(csrc_build: Path) -> None:
    done = subprocess.run(
        ["ctest", "--test-dir", csrc_build, "--output-on-failure"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "100% tests passed, 0 tests failed out of 2" in done.stdout


def test_valgrind_finds_nothing(
    csrc_build: Path,
    program: Path,
    bundle: Path,
    variable_bundle: Path,
    native: EdgeEncoder,
    tmp_path: Path,
) -> None:
    """No read of what was not written, and nothing lost. valgrind knows kernels up to AVX2."""
    if not shutil.which("valgrind"):
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have valgrind")
        pytest.skip("no valgrind: apt-get install valgrind")
    picture, out = PROJECT / "docs" / "demo" / "golf_ball.jpg", tmp_path / "f.bin"
    for command in (
        [csrc_build / "library_test", bundle],
        [program, picture, "-o", out, "--bundle", variable_bundle, "--max-bytes", "60"],
        [program, picture, "-o", out, "--bundle", bundle],
    ):
        done = subprocess.run(
            ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", *command],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "==" not in done.stderr
    assert out.read_bytes() == native.encode(picture)


def test_its_version_is_pythons(c_library: CLibrary) -> None:
    assert c_library.functions.edgecloud_version().decode() == runtime.__version__


def test_what_it_says_of_the_bundle(c_bundle: CBundle, bundle: Path) -> None:
    loaded, info = Bundle.load(bundle), c_bundle.info
    manifest = loaded.manifest
    assert bytes(info.fingerprint) == loaded.fingerprint
    assert (info.channels, info.stride, info.shrink) == (64, 8, 0)
    assert info.max_symbols == loaded.max_symbols
    assert (info.resize, info.crop) == (manifest.preprocessing.resize, manifest.preprocessing.crop)
    assert bool(info.small) is (manifest.profile is Profile.CONTEXT)
    assert info.has_encoder


@pytest.mark.parametrize("profile", [Profile.STATIC, Profile.CONTEXT])
def test_its_files_are_those_of_pythons_native_engine(
    c_bundle: CBundle, bundle: Path, golf_ball: NDArray[np.uint8], profile: Profile
) -> None:
    python = EdgeEncoder(bundle, threads=1, profile=profile, provider="native")
    encoder = c_bundle.encoder(profile=1 + profile.value)
    for image in (golf_ball, golf_ball[::-1, 40:600].copy(), golf_ball[100:180, :50]):
        pixels = c_bundle.prepare(image)
        assert (pixels == preprocess(np.ascontiguousarray(image))).all()
        data = encoder.encode(pixels)
        assert data == python.encode(np.ascontiguousarray(image))
        assert (c_bundle.decode(data) == python.bundle.decode(data)).all()
        assert (c_bundle.decode(data) == python.symbols(pixels[None])[0]).all()
    # Sizes that are not prepared, and rows that lie apart.
    pixels = golf_ball[8:, 8:][:120, :96]
    assert encoder.encode(pixels) == python.encode(np.ascontiguousarray(pixels), as_is=True)
    encoder.close()


def test_real_images(c_bundle: CBundle, bundle: Path, shared: Path) -> None:
    python = EdgeEncoder(bundle, threads=1, provider="native")
    encoder = c_bundle.encoder()
    paths = sorted((shared / "data" / "imagenette" / "val").glob("*/*"))
    assert len(paths) > 1900
    for path in paths[::97]:
        pixels = preprocess(path)
        assert encoder.encode(pixels) == python.encode(path), path
    encoder.close()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_golden_files_are_taken_apart_or_refused_as_in_python(
    c_library: CLibrary, path: Path
) -> None:
    data = path.read_bytes()
    try:
        python = parse(data)
    except FeatureFileError as error:
        with pytest.raises(CError, match=f"^{re.escape(str(error))}$") as refused:
            c_library.parse(data)
        assert refused.value.status == BAD_FEATURE_FILE
        return
    info = c_library.parse(data)
    assert bytes(info.fingerprint) == python.fingerprint
    assert (info.version, info.height, info.width) == (python.version, python.height, python.width)
    assert bool(info.small) is (python.profile is Profile.CONTEXT)
    assert info.step == (-1 if python.step is None else python.step)
    assert info.kept == (-1 if python.kept is None else python.kept)
    assert info.payload_bytes == len(python.payload)


def test_there_are_golden_files_of_both_kinds() -> None:
    assert len(FILES) >= 30


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        (
            lambda data: with_checksum(data, 2, b"\x00\x00\x00\x00"),
            OTHER_BUNDLE,
            "of another bundle",
        ),
        (
            lambda data: with_checksum(data, 6, b"\x00"),
            BAD_FEATURE_FILE,
            "224x0 pixels is impossible",
        ),
        (
            lambda data: with_checksum(data[:6] + b"\xff\xff\xff\x7f" + data[7:], 6, b"\xff"),
            BAD_FEATURE_FILE,
            "more than the .* symbols that the bundle allows",
        ),
        (
            lambda data: with_checksum(data, len(data) - 6, b"\xff"),
            BAD_FEATURE_FILE,
            "payload is damaged",
        ),
    ],
    ids=["fingerprint", "no height", "too large", "payload"],
)
def test_files_that_do_not_fit_the_bundle(
    c_bundle: CBundle,
    feature_bytes: bytes,
    change: Callable[[bytes], bytes],
    status: int,
    text: str,
) -> None:
    with pytest.raises(CError, match=text) as refused:
        c_bundle.decode(change(feature_bytes))
    assert refused.value.status == status


def test_refusals_of_arguments(c_bundle: CBundle, golf_ball: NDArray[np.uint8]) -> None:
    for arguments, text in (
        ({"threads": 257}, "threads are 1 to 256"),
        ({"profile": 3}, "profile is 0, 1 or 2"),
        ({"kernel": "mmx"}, "this machine has no kernel mmx"),
    ):
        with pytest.raises(CError, match=text) as refused:
            c_bundle.encoder(**arguments)
        assert refused.value.status == BAD_ARGUMENT
    encoder = c_bundle.encoder()
    with pytest.raises(CError, match="640x476 pixels has sides that are not multiples of 8") as bad:
        encoder.encode(golf_ball[:476])
    assert bad.value.status == BAD_IMAGE
    huge = np.lib.stride_tricks.as_strided(golf_ball, (8000, 8000, 3), (24000, 3, 1))
    with pytest.raises(CError, match=r"more than the .* symbols") as bad:
        encoder.encode(huge)
    assert bad.value.status == BAD_IMAGE
    encoder.close()


def test_bundles_that_are_refused(
    c_library: CLibrary, bundle: Path, copy_of: Callable[[Path], Path], random_bundle: Path
) -> None:
    folder = copy_of(bundle)
    (folder / EDGE_WEIGHTS).unlink()
    with pytest.raises(CError, match=r"the bundle lacks .*edge\.weights: copy it") as refused:
        c_library.open(folder)
    assert refused.value.status == BAD_FILE
    (folder / EDGE_WEIGHTS).write_bytes((bundle / EDGE_WEIGHTS).read_bytes()[:-1] + b"\x07")
    with pytest.raises(CError, match=r"edge\.weights is not the file that was exported") as refused:
        c_library.open(folder)
    assert refused.value.status == BAD_BUNDLE
    tables = (bundle / EDGE_TABLES).read_bytes()
    for changed, text in (
        (b"GIF89a" + bytes(20), "it is not a file of tables"),
        (tables[:8] + b"\x03" + tables[9:], "it has version 3, this release reads 1 and 2"),
        (tables[:-4], "it is damaged or incomplete"),
        (
            with_checksum(tables, 40, b"\x01\x02"),
            "its contents give another fingerprint than it says",
        ),
        (with_checksum(tables, 16, b"\x03"), "its shape rule is impossible"),
        (with_checksum(tables, 32, b"\x07"), "a value is out of its range"),
    ):
        with pytest.raises(CError, match=f"edge.tables is refused, {text}: copy it") as refused:
            c_library.from_memory(changed)
        assert refused.value.status == BAD_BUNDLE
    only_tables = c_library.from_memory(tables)
    with pytest.raises(CError, match=r"no edge\.weights, which encoders need"):
        only_tables.encoder()
    only_tables.close()


def test_a_bundle_without_weights_decodes(
    c_library: CLibrary, bundle: Path, feature_bytes: bytes
) -> None:
    opened = c_library.from_memory((bundle / EDGE_TABLES).read_bytes())
    assert not opened.info.has_encoder
    assert (opened.decode(feature_bytes) == Bundle.load(bundle).decode(feature_bytes)).all()
    opened.close()


def test_the_example_encodes(csrc_build: Path, bundle: Path, golf_ball: NDArray[np.uint8]) -> None:
    done = subprocess.run(
        [csrc_build / "edgecloud_example", bundle, "480", "640"],
        input=golf_ball.tobytes(),
        capture_output=True,
        check=True,
    )
    assert done.stdout == EdgeEncoder(bundle, threads=1, provider="native").encode(golf_ball)
    source = PROJECT / "examples" / "c" / "encode.c"
    assert len(source.read_text().splitlines()) < 60


def test_install_gives_what_others_buildwith_checksum(
    csrc_build: Path, tmp_path: Path, bundle: Path, golf_ball: NDArray[np.uint8]
) -> None:
    """A program of another project finds the installed library through CMake, and runs."""
    installed, other = tmp_path / "installed", tmp_path / "other"

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)

    run("cmake", "--install", csrc_build, "--prefix", installed)
    other.mkdir()
    (other / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(other C)\nfind_package(edgecloud REQUIRED)\n"
        f"add_executable(other {PROJECT / 'examples' / 'c' / 'encode.c'})\n"
        "target_link_libraries(other edgecloud::edgecloud)\n"
    )
    run("cmake", "-S", other, "-B", other / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", other / "build")
    done = subprocess.run(
        [other / "build" / "other", bundle, "480", "640"],
        input=golf_ball.tobytes(),
        capture_output=True,
        check=True,
    )
    assert done.stdout[:1] == b"\xfc"
    assert len(list(installed.glob("lib*/**/edgecloud.pc"))) == 1
    assert (installed / "include" / "edgecloud.h").is_file()
