"""The native encoder: every kernel gives the oracle's symbols, and bad files are refused."""

import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import integer_encoder as oracle
import numpy as np
import pytest
from numpy.typing import NDArray
from variable_bundle import LATENT_FRACTION

from runtime import CloudDecoder, EdgeEncoder
from runtime.codec.bundle import EDGE_WEIGHTS, Bundle
from runtime.engine import registry
from runtime.engine.base import Choice
from runtime.engine.native import _encoder
from runtime.errors import EngineChoiceError, InconsistentBundleError

GOLF_BALL = Path(__file__).resolve().parents[3] / "docs" / "demo" / "golf_ball.jpg"
NATIVE = Choice("native", "int8")
FIRST_LAYER = oracle.HEADER.size + 512
FIRST_BIASES = FIRST_LAYER + 12 + 2 * 128 * 192
FIRST_MULTIPLIERS = FIRST_BIASES + 4 * 128


def noise(rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (8 * rows, 8 * columns, 3), dtype=np.uint8)


@pytest.mark.parametrize("kernel", _encoder.KERNELS)
@pytest.mark.parametrize("extreme", [False, True], ids=["usual", "extreme"])
@pytest.mark.parametrize(
    ("blocks", "rows", "columns"), [(0, 3, 5), (0, 1, 1), (1, 2, 17), (2, 5, 28), (1, 1, 29)]
)
def test_every_kernel_gives_the_symbols_of_the_oracle(
    kernel: str, blocks: int, rows: int, columns: int, extreme: bool
) -> None:
    weights = oracle.random_weights(blocks, rows + columns, extreme)
    for pixels in (noise(rows, columns), np.full((8 * rows, 8 * columns, 3), 255, np.uint8)):
        expected = oracle.encode(weights, pixels)
        assert (expected != 0).any()
        encoder = _encoder.Encoder(oracle.write(weights), kernel=kernel)
        assert encoder.kernel == kernel
        assert np.array_equal(encoder.encode(pixels[None])[0], expected)


def test_saturated_values_and_symbols() -> None:
    """Multipliers that are too large: values and symbols stay within their bounds."""
    weights = oracle.random_weights(1, 3, extreme=True)
    for layer in weights.layers:
        layer.multipliers[:] = (1 << 31) - 1
        layer.shift = 36
    pixels = noise(3, 16)
    expected = oracle.encode(weights, pixels)
    assert (expected.min(), expected.max()) == (-32767, 32767)
    for kernel in _encoder.KERNELS:
        found = _encoder.Encoder(oracle.write(weights), kernel=kernel).encode(pixels[None])[0]
        assert np.array_equal(found, expected), kernel


@pytest.mark.parametrize("kernel", _encoder.KERNELS)
def test_real_weights_and_a_real_picture(
    bundle: Path, pixels: NDArray[np.uint8], kernel: str
) -> None:
    data = (bundle / EDGE_WEIGHTS).read_bytes()
    expected = oracle.encode(oracle.read(data), pixels[0])
    assert np.array_equal(_encoder.Encoder(data, kernel=kernel).encode(pixels)[0], expected)


def test_threads_and_batches_do_not_change_symbols(bundle: Path, pixels: NDArray[np.uint8]) -> None:
    data = (bundle / EDGE_WEIGHTS).read_bytes()
    batch = np.concatenate([pixels, pixels[:, ::-1].copy(), 255 - pixels])
    expected = np.concatenate([_encoder.Encoder(data).encode(one[None]) for one in batch])
    for threads in (1, 2, 3, 7, 64):
        encoder = _encoder.Encoder(data, threads)
        for _ in range(3):
            assert np.array_equal(encoder.encode(batch), expected), threads
    assert encoder.encode(batch[:0]).shape == (0, 64, 28, 28)


def test_several_calls_at_the_same_time(bundle: Path, pixels: NDArray[np.uint8]) -> None:
    encoder = _encoder.Encoder((bundle / EDGE_WEIGHTS).read_bytes(), 2)
    small = np.ascontiguousarray(pixels[:, :64, :80])
    expected = [encoder.encode(one) for one in (pixels, small)]
    with ThreadPoolExecutor(4) as pool:
        for index, found in enumerate(pool.map(encoder.encode, [pixels, small] * 20)):
            assert np.array_equal(found, expected[index % 2])


def _with(data: bytes, at: int, kind: str, value: int) -> bytes:
    packed = struct.pack(kind, value)
    return data[:at] + packed + data[at + len(packed) :]


@pytest.mark.parametrize(
    ("at", "kind", "value", "reason"),
    [
        (0, "<B", 0, "not a file of an integer encoder"),
        (8, "<I", 0, "another version"),
        (8, "<I", 2, "a value out of its range"),
        (8, "<I", 3, "another version"),
        (12, "<I", 16, "does not know"),
        (16, "<I", 256, "does not know"),
        (20, "<I", 32, "does not know"),
        (24, "<I", 24, "does not know"),
        (28, "<I", 65, "does not know"),
        (28, "<I", 0xFFFFFFFF, "does not know"),
        (28, "<I", 2, "cut short or has bytes left over"),
        (32, "<I", 5, "a value out of its range"),
        (32, "<I", 15, "a value out of its range"),
        (oracle.HEADER.size, "<H", 32768, "a value out of its range"),
        (FIRST_LAYER, "<I", 31, "a value out of its range"),
        (FIRST_LAYER, "<I", 62, "a value out of its range"),
        (FIRST_LAYER + 4, "<I", 1, "a value out of its range"),
        (FIRST_LAYER + 8, "<I", 1, "a value out of its range"),
        (FIRST_LAYER + 12, "<h", -32768, "a value out of its range"),
        (FIRST_BIASES, "<i", 2**31 - 1, "a value out of its range"),
        (FIRST_BIASES, "<i", -(2**31), "a value out of its range"),
        (FIRST_MULTIPLIERS, "<i", 4, "a value out of its range"),
        (FIRST_MULTIPLIERS, "<i", -1, "a value out of its range"),
        (FIRST_MULTIPLIERS + 512 + 4, "<I", 0, "a value out of its range"),
        (FIRST_MULTIPLIERS + 512 + 4, "<I", 32768, "a value out of its range"),
        (FIRST_MULTIPLIERS + 512 + 8, "<I", 256, "a value out of its range"),
        (FIRST_MULTIPLIERS + 512 + 12, "<b", -128, "a value out of its range"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused(at: int, kind: str, value: int, reason: str) -> None:
    data = oracle.write(oracle.random_weights(1, 0))
    _encoder.Encoder(data)
    with pytest.raises(ValueError, match=reason):
        _encoder.Encoder(_with(data, at, kind, value))


@pytest.mark.parametrize("kernel", _encoder.KERNELS)
def test_every_kernel_gives_the_latent_of_the_oracle(kernel: str) -> None:
    weights = oracle.of_latent(oracle.random_weights(1, 4), 5, bytes(32))
    pixels = noise(3, 17)
    expected = oracle.encode(weights, pixels)
    assert np.abs(expected).max() > 200
    encoder = _encoder.Encoder(oracle.write(weights), kernel=kernel)
    assert encoder.latent_fraction == 5
    assert np.array_equal(encoder.encode(pixels[None])[0], expected)
    assert _encoder.Encoder(oracle.write(oracle.random_weights(0, 0))).latent_fraction is None


def test_a_file_of_the_latent_that_breaks_a_rule_is_refused() -> None:
    data = oracle.write(oracle.of_latent(oracle.random_weights(0, 0), 3, bytes(32)))
    _encoder.Encoder(data)
    for size in (oracle.HEADER.size, oracle.HEADER.size + 3, len(data) - 4):
        with pytest.raises(ValueError, match="cut short"):
            _encoder.Encoder(data[:size])
    _encoder.Encoder(_with(data, oracle.HEADER.size, "<I", 14))
    with pytest.raises(ValueError, match="a value out of its range"):
        _encoder.Encoder(_with(data, oracle.HEADER.size, "<I", 15))


def test_it_runs_variable_rate_bundles(variable_bundle: Path, pixels: NDArray[np.uint8]) -> None:
    ours = EdgeEncoder(variable_bundle, 1, provider="native")
    latent, expected = (
        encoder.graph_output(pixels)
        for encoder in (ours, EdgeEncoder(variable_bundle, 1, provider="cpu", precision="fp32"))
    )
    assert (latent.dtype, latent.shape) == (expected.dtype, expected.shape)
    assert np.abs(latent - expected).mean() < 0.02
    weights = oracle.read((variable_bundle / EDGE_WEIGHTS).read_bytes())
    assert weights.latent_fraction == LATENT_FRACTION
    assert np.array_equal(latent[0], oracle.encode(weights, pixels[0]) / 2**LATENT_FRACTION)
    for budget in ({}, {"rate": 0}, {"rate": 15}, {"max_bytes": 500}, {"max_bytes": 30}):
        data = ours.encode(pixels[0], as_is=True, **budget)
        assert len(data) <= budget.get("max_bytes", len(data))
        assert np.isfinite(CloudDecoder(variable_bundle, 1).logits([data])).all()


def test_the_shift_of_the_last_convolution_leaves_no_tie() -> None:
    weights = oracle.random_weights(0, 0)
    weights.layers[0] = replace(weights.layers[0], shift=32)
    _encoder.Encoder(oracle.write(weights))
    weights.layers[1] = replace(weights.layers[1], shift=32)
    with pytest.raises(ValueError, match="a value out of its range"):
        _encoder.Encoder(oracle.write(weights))


def test_every_truncation_is_refused() -> None:
    data = oracle.write(oracle.random_weights(0, 0))
    for size in (*range(700), *range(700, len(data), 997), len(data) - 1):
        with pytest.raises(ValueError, match=r"cut short|not a file"):
            _encoder.Encoder(data[:size])
    with pytest.raises(ValueError, match="bytes left over"):
        _encoder.Encoder(data + b"\0")


def test_arguments_that_cannot_be_used(bundle: Path) -> None:
    data = (bundle / EDGE_WEIGHTS).read_bytes()
    encoder = _encoder.Encoder(data)
    for shape in ((224, 224, 3), (1, 224, 220, 3), (1, 12, 224, 3), (1, 224, 224, 4)):
        with pytest.raises(ValueError, match="pixels must have the shape"):
            encoder.encode(np.zeros(shape, np.uint8))
    with pytest.raises(TypeError):
        encoder.encode(np.zeros((1, 224, 224, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no kernel abacus"):
        _encoder.Encoder(data, kernel="abacus")
    for threads in (0, 257):
        with pytest.raises(ValueError, match="threads must be 1 to 256"):
            _encoder.Encoder(data, threads)


def test_the_engine_is_one_of_the_registry(bundle: Path, pixels: NDArray[np.uint8]) -> None:
    assert NATIVE in registry.candidates(Bundle.load(bundle), "edge")
    assert NATIVE not in registry.candidates(Bundle.load(bundle), "cloud")
    ours = EdgeEncoder(bundle, 1, provider="native")
    assert ours.engine.choice == NATIVE
    assert EdgeEncoder(bundle, provider="native", precision="int8").engine.choice == NATIVE
    expected = EdgeEncoder(bundle, 1).symbols(pixels)
    found = ours.symbols(pixels)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert (found != expected).mean() < 0.002
    assert CloudDecoder(bundle, 1).classify(ours.encode(GOLF_BALL))[0].label == "golf ball"


def test_what_the_engine_cannot_run(bundle: Path, random_bundle: Path) -> None:
    with pytest.raises(EngineChoiceError, match="no file for the edge that native runs"):
        EdgeEncoder(random_bundle, 1, provider="native")
    with pytest.raises(EngineChoiceError, match="no file for the cloud that native runs"):
        CloudDecoder(bundle, 1, provider="native")
    with pytest.raises(EngineChoiceError, match="native has no fp32: choose --provider cpu"):
        EdgeEncoder(bundle, 1, provider="native", precision="fp32")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[:-1], "native cannot load .*edge.weights: is cut short"),
        (lambda data: data[:36] + bytes(32) + data[68:], "is of bundle 00000000"),
    ],
    ids=["truncated", "of another bundle"],
)
def test_weights_of_a_bundle_that_do_not_fit(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[bytes], bytes],
    reason: str,
) -> None:
    read = Bundle.read
    monkeypatch.setattr(Bundle, "read", lambda self, name: change(read(self, name)))
    with pytest.raises(InconsistentBundleError, match=reason):
        EdgeEncoder(bundle, 1, provider="native")


# All packages but numpy and Pillow look as if they were not installed.
ALONE = """
import importlib.metadata, logging, sys
own = {"numpy", "PIL", "runtime", *sys.stdlib_module_names}
for names in importlib.metadata.packages_distributions(), ["onnxruntime", "openvino"]:
    sys.modules.update(dict.fromkeys(set(names) - own))
logging.basicConfig(level=logging.WARNING, format="%(message)s")
from runtime import EdgeEncoder
"""


def alone(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ALONE + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_edge_runs_with_numpy_and_pillow_alone(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "feat.bin"
    code = (
        "from runtime.cli.edge_encode import main\n"
        "assert main([sys.argv[1], '-o', sys.argv[2], '--bundle', sys.argv[3]]) == 0\n"
        "assert str(EdgeEncoder(sys.argv[3]).engine.choice) == 'native int8'\n"
    )
    done = alone(code, GOLF_BALL, out, bundle)
    assert done.returncode == 0, done.stderr
    assert "cpu fp32 needs the package onnxruntime, which is not installed here" in done.stderr
    assert "native int8 runs instead" in done.stderr
    assert out.read_bytes() == EdgeEncoder(bundle, provider="native").encode(GOLF_BALL)


def test_without_onnxruntime_and_without_weights(bundle: Path, random_bundle: Path) -> None:
    code = (
        "from runtime import CloudDecoder\n"
        "from runtime.codec.bundle import Bundle\n"
        "from runtime.engine.tune import changed_symbols, tune\n"
        "from runtime.errors import EngineChoiceError, TuneError\n"
        "import numpy as np\n"
        "for make, folder in ((EdgeEncoder, sys.argv[1]), (CloudDecoder, sys.argv[2])):\n"
        "    try: make(folder, threads=1)\n"
        "    except EngineChoiceError as error: print(error)\n"
        "picture = np.zeros((1, 224, 224, 3), np.uint8)\n"
        "try: tune(Bundle.load(sys.argv[2]), 'edge', [picture], changed_symbols)\n"
        "except TuneError as error: print(error)\n"
    )
    done = alone(code, random_bundle, bundle)
    assert done.returncode == 0, done.stderr
    edge, cloud, tuning = done.stdout.splitlines()
    assert "no engine that is installed here can run the edge of" in edge
    assert "no engine that is installed here can run the cloud of" in cloud
    assert edge.endswith("pip install onnxruntime")
    assert "compared with cpu fp32, which needs the package onnxruntime" in tuning
