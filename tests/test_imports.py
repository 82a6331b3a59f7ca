"""Who may import whom, and what start-up costs: the edge half stands without torch."""

import subprocess
import sys

import pytest

BLOCK_TORCH = """
import sys
class Block:
    def find_spec(self, name, *_):
        if name.split('.')[0] in BLOCKED: raise ImportError(f'{name} is blocked')
sys.meta_path.insert(0, Block())
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_runtime_imports_no_torch_and_no_other_room() -> None:
    blocked = {"torch", "torchvision", "compressai", "onnx", "safetensors", "training", "export", "tests", "benchmarks", "scipy"}
    code = (
        f"BLOCKED = {blocked!r}"
        + BLOCK_TORCH
        + (
            "import pkgutil, importlib, runtime\n"
            "names = [m.name for m in pkgutil.iter_modules(runtime.__path__)]\n"
            "assert 'edge' in names and 'cloud_cli' in names\n"
            "from runtime.errors import MissingExtraError\n"
            "for name in names:\n"
            "    try: importlib.import_module('runtime.' + name)\n"
            "    except MissingExtraError: pass\n"
            "from runtime import EdgeEncoder, CloudDecoder\n"
        )
    )
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_ray_is_imported_by_its_own_modules_alone() -> None:
    code = (
        "BLOCKED = {'ray'}"
        + BLOCK_TORCH
        + (
            "import pkgutil, importlib, runtime\n"
            "from runtime.errors import MissingExtraError\n"
            "names = {m.name for m in pkgutil.iter_modules(runtime.__path__)}\n"
            "own = {'ray_app', 'ray_bulk'}\n"
            "for name in names - own: importlib.import_module('runtime.' + name)\n"
            "for name in own:\n"
            "    try: importlib.import_module('runtime.' + name)\n"
            "    except MissingExtraError as error: assert 'edgecloud-features[ray]' in str(error)\n"
            "    else: raise AssertionError(name)\n"
        )
    )
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_training_imports_neither_runtime_nor_export() -> None:
    code = "BLOCKED = {'runtime', 'export', 'benchmarks'}" + BLOCK_TORCH + "import training.train\n"
    result = run(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["runtime.edge_cli", "runtime.cloud_cli", "runtime.send_cli", "export.__main__"])
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(module: str, option: str) -> None:
    code = (
        "BLOCKED = {'numpy', 'onnxruntime', 'PIL', 'torch', 'onnx', 'compressai', 'httpx', 'asyncio'}"
        + BLOCK_TORCH
        + f"import importlib; sys.argv = ['command', {option!r}]; importlib.import_module({module!r}).main()\n"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert ("usage:" if option == "--help" else "0.") in result.stdout


def test_a_name_that_runtime_lacks() -> None:
    import runtime

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        runtime.Nothing  # noqa: B018
