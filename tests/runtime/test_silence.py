"""Nothing that we run sends telemetry or writes under HOME.

onnxruntime, OpenVINO and Ray each have telemetry, which `runtime/__init__.py` switches off. Here
strace watches an encode and a decode in an empty HOME.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
GOLF_BALL = PROJECT / "docs" / "demo" / "golf_ball.jpg"
REPORTS = re.compile(r"^\s*(import|from) (onnxruntime|openvino|ray)\b", re.MULTILINE)
MODULES = [
    ".".join(path.relative_to(PROJECT).with_suffix("").parts)
    for room in ("runtime", "export", "benchmarks", "training")
    for path in sorted((PROJECT / room).rglob("*.py"))
    if REPORTS.search(path.read_text())
]

# When one of the three is about to be imported: exits with a message unless its telemetry is off.
WATCH = """
import importlib, os, sys
class Watch:
    def find_spec(self, name, *_):
        if name in ("onnxruntime", "openvino", "ray"):
            ort_off = os.environ.get("ORT_DISABLE_TELEMETRY") == "1"
            ray_off = os.environ.get("RAY_USAGE_STATS_ENABLED") == "0"
            openvino_off = sys.modules.get("openvino_telemetry", 1) is None
            sys.exit(0 if ort_off and ray_off and openvino_off else f"{name} would report")
        if name in ("torch", "onnx", "torchvision"):
            sys.exit(0)  # importing them takes seconds, and they report nothing
sys.meta_path.insert(0, Watch())
try:
    importlib.import_module(sys.argv[1])
except Exception as error:
    if type(error).__name__ not in ("ImportError", "ModuleNotFoundError", "MissingExtraError"):
        raise
"""


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment without the two variables, with `changes`; None removes one."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("ORT_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED")
    }
    return {key: value for key, value in (kept | changes).items() if value is not None}


def test_the_modules_that_import_what_reports_are_found() -> None:
    assert {"runtime.engine.onnxruntime", "runtime.cluster.bulk"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_reports_are_off_before_any_module_imports_what_reports(module: str) -> None:
    command = [sys.executable, "-c", WATCH, module]
    done = subprocess.run(
        command, env=environment(), cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def commands(folder: Path, bundle: Path, provider: str) -> list[list[str]]:
    options = ["--bundle", str(bundle), "--provider", provider, "--precision", "fp32"]
    feature_file = str(folder / "feat.bin")
    return [
        [
            sys.executable,
            "-m",
            "runtime.cli.edge_encode",
            str(GOLF_BALL),
            "-o",
            feature_file,
            *options,
        ],
        [sys.executable, "-m", "runtime.cli.cloud_decode", feature_file, *options],
    ]


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_encode_and_decode_make_no_socket_and_leave_home_empty(
    provider: str, bundle: Path, tmp_path: Path
) -> None:
    if provider == "openvino" and not find_spec("openvino"):
        pytest.skip("openvino is an extra")
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    watched = []
    if shutil.which("strace"):
        calls = (
            "socket,connect,creat,open,openat,mkdir,mkdirat,rename,renameat,renameat2,"
            "link,linkat,symlink,symlinkat"
        )
        watched = ["strace", "-f", "-qq", "-e", "signal=none", "-e", f"trace={calls}", "-o"]
    elif os.environ.get("CI") == "true":
        pytest.fail("CI must have strace: apt-get install strace")
    for index, command in enumerate(commands(out, bundle, provider)):
        trace = tmp_path / f"{index}.trace"
        prefix = [*watched, str(trace)] if watched else []
        env = environment(HOME=str(home), PYTHONDONTWRITEBYTECODE="1")
        done = subprocess.run(
            [*prefix, *command], env=env, cwd=PROJECT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert list(home.iterdir()) == []
        if watched:
            lines = trace.read_text().splitlines()
            assert any(GOLF_BALL.name in line or "feat.bin" in line for line in lines), (
                "strace saw the command's own files"
            )
            assert [line for line in lines if re.search(r"\b(socket|connect)\(", line)] == []
            written = [
                line
                for line in lines
                if re.search(r"O_CREAT|O_WRONLY|\b(creat|mkdir|mkdirat)\(", line)
            ]
            assert [
                line
                for line in written
                if f'"{out}' not in line and f'"{tmp_path}"' not in line and "/dev/null" not in line
            ] == []
    assert (out / "feat.bin").is_file()


@pytest.mark.parametrize("home", [None, "/nonexistent", ""])
def test_without_a_home_nothing_is_printed(home: str | None, bundle: Path, tmp_path: Path) -> None:
    for command in commands(tmp_path, bundle, "cpu"):
        done = subprocess.run(
            command,
            env=environment(HOME=home),
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_users_own_choice_stays() -> None:
    names = "ORT_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED"
    code = f"import os, runtime; print(*[os.environ[name] for name in {names}])"
    env = environment(ORT_DISABLE_TELEMETRY="0", RAY_USAGE_STATS_ENABLED="1")
    assert (
        subprocess.run(
            [sys.executable, "-c", code],
            env=env,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        == "0 1\n"
    )


def test_telemetry_of_an_earlier_import_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a program that imports onnxruntime before `runtime`."""
    code = (
        "import onnxruntime\nended = []\n"
        "onnxruntime.disable_telemetry_events = lambda: ended.append(1)\n"
        "import runtime.engine.onnxruntime\nassert ended == [1]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(ORT_DISABLE_TELEMETRY="1"),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
