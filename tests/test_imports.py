"""Each room runs without the packages it does not own, and starting a command imports little."""

import subprocess
import sys
from pathlib import Path

import pytest

GOLF_BALL = Path(__file__).resolve().parent.parent / "docs" / "demo" / "golf_ball.jpg"
COUNT = "import os\nprint(len(os.listdir('/proc/self/task')))\n"

BLOCK_TORCH = """
import sys
class Block:
    def find_spec(self, name, *_):
        if name.split('.')[0] in BLOCKED: raise ImportError(f'{name} is blocked')
sys.meta_path.insert(0, Block())
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_runtime_imports_no_torch_and_no_other_room() -> None:
    blocked = {
        "torch",
        "torchvision",
        "compressai",
        "onnx",
        "safetensors",
        "training",
        "export",
        "tests",
        "benchmarks",
        "scipy",
    }
    code = (
        f"BLOCKED = {blocked!r}"
        + BLOCK_TORCH
        + (
            "import pkgutil, importlib, runtime\n"
            "names = [m.name for m in pkgutil.walk_packages(runtime.__path__, 'runtime.')]\n"
            "assert {'runtime.edge', 'runtime.cli.cloud_decode'} < set(names)\n"
            "assert 'runtime.service.app' in names\n"
            "from runtime.errors import MissingExtraError\n"
            "for name in names:\n"
            "    try: importlib.import_module(name)\n"
            "    except MissingExtraError: pass\n"
            "from runtime import EdgeEncoder, CloudDecoder\n"
        )
    )
    result = run(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("extra", "packages", "owners", "command"),
    [
        (
            "cloud",
            {"starlette", "uvicorn", "prometheus_client"},
            {
                "service.app",
                "service.core",
                "service.http_endpoints",
                "service.http_middleware",
                "service.http_page",
                "service.http_refusal",
                "service.http_request",
                "service.http_server",
                "service.metrics",
            },
            "cloud_serve.main([])",
        ),
        (
            "send",
            {"httpx"},
            {"delivery.sender", "delivery.route", "delivery.answers"},
            "edge_send.main(['--url', 'http://localhost'])",
        ),
        ("parquet", {"pyarrow"}, {"bulk.parquet", "bulk.rows"}, None),
        ("ray", {"ray"}, {"cluster.app", "cluster.bulk"}, None),
    ],
)
def test_only_its_owners_import_what_an_extra_brings(
    extra: str, packages: set[str], owners: set[str], command: str | None
) -> None:
    """Without an extra, everything in `runtime` works except the modules that own the extra."""
    code = (
        f"BLOCKED = {packages!r}"
        + BLOCK_TORCH
        + (
            "import pkgutil, importlib, runtime\n"
            "from runtime.errors import MissingExtraError\n"
            "names = {m.name for m in pkgutil.walk_packages(runtime.__path__, 'runtime.')}\n"
            f"owners = { {f'runtime.{owner}' for owner in owners}!r}\n"
            "assert owners < names\n"
            "for name in names:\n"
            "    try: importlib.import_module(name)\n"
            # Packages of other extras may be missing.
            "    except MissingExtraError as error:\n"
            "        assert name not in owners or 'is blocked' in str(error)\n"
            "    except ImportError as error:\n"
            "        assert name in owners and 'is blocked' in str(error), (name, error)\n"
            "    else: assert name not in owners, name\n"
        )
        + (
            f"from runtime.cli import cloud_serve, edge_send\nassert {command} == 1\n"
            if command
            else ""
        )
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert command is None or f"pip install 'edgecloud-features[{extra}]'" in result.stderr


def test_training_imports_neither_runtime_nor_export() -> None:
    code = (
        "BLOCKED = {'runtime', 'export', 'benchmarks'}"
        + BLOCK_TORCH
        + (
            "import pkgutil, importlib, training\n"
            "for module in pkgutil.iter_modules(training.__path__, 'training.'):\n"
            "    importlib.import_module(module.name)\n"
        )
    )
    result = run(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "module",
    [
        "runtime.cli.edge_encode",
        "runtime.cli.cloud_decode",
        "runtime.cli.cloud_serve",
        "runtime.cli.edge_send",
        "export.cli",
    ],
)
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(module: str, option: str) -> None:
    heavy = {
        *("numpy", "onnxruntime", "PIL", "torch", "onnx", "compressai"),
        *("starlette", "uvicorn", "httpx", "asyncio"),
    }
    code = (
        f"BLOCKED = {heavy!r}"
        + BLOCK_TORCH
        + f"import importlib; sys.argv = ['command', {option!r}]\n"
        + f"importlib.import_module({module!r}).main()\n"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert ("usage:" if option == "--help" else "0.") in result.stdout


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_the_commands_start_no_threads_that_nothing_uses(bundle: Path, tmp_path: Path) -> None:
    own = run(
        "import os\nos.environ['OPENBLAS_NUM_THREADS'] = '1'\nimport numpy, onnxruntime\n" + COUNT
    ).stdout.strip()
    code = (
        "import sys\nfrom runtime.cli import cloud_decode, edge_encode\n"
        "main = edge_encode.main if sys.argv[1].endswith('.jpg') else cloud_decode.main\n"
        "assert main(sys.argv[1:]) == 0\n" + COUNT
    )
    options = ("--bundle", str(bundle), "--threads", "1")
    for arguments in (
        (str(GOLF_BALL), "-o", str(tmp_path / "feat.bin")),
        (str(tmp_path / "feat.bin"),),
    ):
        result = run(code, *arguments, *options)
        assert (result.returncode, result.stdout.split()[-1]) == (0, own), result.stderr


def test_a_name_that_runtime_lacks() -> None:
    import runtime

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        runtime.Nothing  # noqa: B018
