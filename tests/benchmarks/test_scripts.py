"""Every benchmark starts as a script and as a module, and records name their commit."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import latency, machine, serving_report
from benchmarks.common import header, markdown, read_record, write_record
from benchmarks.timing import in_turn, ratios

PROJECT = Path(__file__).resolve().parents[2]
SCRIPTS = [
    file.stem
    for file in sorted((PROJECT / "benchmarks").glob("*.py"))
    if 'if __name__ == "__main__":' in file.read_text()
]


def start(*arguments: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_starts_as_a_script(name: str, tmp_path: Path) -> None:
    done = start(str(PROJECT / "benchmarks" / f"{name}.py"), "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {name}.py" in done.stdout


def test_a_benchmark_starts_as_a_module() -> None:
    done = start("-m", "benchmarks.rate_accuracy", "--imagenet", "--smoke")
    assert done.returncode == 0, done.stderr
    assert "| ours_n4 |" in done.stdout


def test_nothing_patches_the_search_path() -> None:
    assert len(SCRIPTS) == 16
    for file in (PROJECT / "benchmarks").glob("*.py"):
        assert not re.search(r"sys\.path\b", file.read_text().split('"""', 2)[2]), file


def git(folder: Path, *arguments: str) -> None:
    options = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *options, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean checkout with a benchmark, a record and another file."""
    for name in ("benchmarks/latency.py", "benchmarks/results/latency.json", "runtime/edge.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "benchmarks" / "machine.py"))
    return tmp_path


def test_a_record_says_that_its_tree_had_changes(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = header("latency", 2)
    assert re.fullmatch("[0-9a-f]{7,}", clean["commit"])
    assert (clean["benchmark"], clean["machine"]["threads"]) == ("latency", 2)
    record = checkout / "benchmarks" / "results" / "latency.json"
    write_record(record, clean)
    assert machine.commit() == clean["commit"], "records that a benchmark has written do not count"
    assert capsys.readouterr().err == ""
    (checkout / "runtime" / "edge.py").write_text("new")
    write_record(record, header("latency", 2))
    assert json.loads(record.read_text())["commit"] == f"{clean['commit']}+"
    assert "note: uncommitted changes, so latency.json has the commit" in capsys.readouterr().err


def test_there_is_no_commit_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine.commit() is None


def test_figures_are_drawn_from_kept_records(tmp_path: Path) -> None:
    latency.draw(read_record("latency"), tmp_path / "latency.png")
    serving_report.draw(read_record("serving"), tmp_path / "serving.png")
    for name in ("latency.png", "serving.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("file", sorted((PROJECT / "benchmarks" / "results").glob("*.png")))
def test_figures_are_small(file: Path) -> None:
    assert file.stat().st_size < 150_000


def test_parts_take_turns_and_warm_up_does_not_count() -> None:
    calls: list[str] = []
    parts = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = in_turn(parts, runs=2, warm_up=1)
    assert calls == ["a", "b"] * 3
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_ratios_are_of_the_same_turn() -> None:
    assert ratios([2, 40, 6], [1, 20, 3]) == {
        "median": 2.0,
        "quartile_low": 2.0,
        "quartile_high": 2.0,
    }


def test_a_markdown_table_is_left_aligned_where_said() -> None:
    assert markdown(["a", "b", "c"], [["1", "2", "3"]], align="ll") == (
        "| a | b | c |\n|---|---|--:|\n| 1 | 2 | 3 |"
    )
