"""What all training commands share: signals, exit statuses, and closed streams."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import command, options, team
from training.command import TrainingError, number

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys, time
from training.command import command, say

@command("training.x", resumes=True)
def main(argv=None):
    try:
        say("ready", sys.stdout)
        time.sleep(60)
    finally:
        say("cleaned up", sys.stderr)
    return 0

sys.exit(main())
"""


@pytest.mark.parametrize(
    ("number", "rank", "status", "said"),
    [
        (
            signal.SIGINT,
            "0",
            130,
            "training.x: interrupted; start it again with the same --run_dir",
        ),
        (
            signal.SIGTERM,
            "0",
            143,
            "training.x: stopped by SIGTERM; start it again with the same --run_dir",
        ),
        (
            signal.SIGHUP,
            "0",
            129,
            "training.x: stopped by SIGHUP; start it again with the same --run_dir",
        ),
        (signal.SIGTERM, "1", 143, None),
    ],
)
def test_a_signal_is_one_line_of_the_first_process(
    number: int, rank: str, status: int, said: str | None
) -> None:
    environment = {**os.environ, "RANK": rank}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        err = process.communicate()[1].splitlines()
    assert process.returncode == status
    assert err[0] == "cleaned up"
    assert [line.startswith(said) for line in err[1:]] == [True] if said else len(err) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TrainingError("why"), "why"),
        (ValueError("why"), "why"),
        (FileNotFoundError(2, "No such file", "x"), "x"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "give a smaller --batch_size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "--workers 0"),
    ],
)
def test_what_a_command_refuses_is_one_line(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @command.command("training.x")
    def main(argv: list[str] | None = None) -> int:
        raise error

    assert main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("training.x: ")
    assert said in line


def test_a_bug_keeps_its_traceback() -> None:
    @command.command("training.x")
    def main(argv: list[str] | None = None) -> int:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        main([])


def test_a_line_that_cannot_be_printed_stops_nothing() -> None:
    code = (
        "import sys\nfrom training.command import say\n"
        "for _ in range(3): say('\\u00e9' * 99, sys.stdout)\n"
        "say('done', sys.stderr)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for shell in ('"$0" -c "$1" >&-', '"$0" -c "$1" | true', '"$0" -c "$1" > /dev/full'):
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {shell}", sys.executable, code],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "done\n"), shell


def test_mixed_precision_is_on_where_there_are_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training import backbone

    cpu = torch.device("cpu")
    for has, expected in (
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),
        ({"avx512_f": True}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has, raising=False)
        assert team.computes_in_bfloat16(cpu) == expected
    alone = team.Team(0, 1, cpu)
    for more, expected in (([], False), (["--amp"], True), (["--no-amp"], False)):
        args = backbone._parser().parse_args(["--data", "x", *more])
        team.settle_precision(args, alone)
        assert args.amp is expected
        assert options.recipe(args, 1)["amp"] == str(expected)
    assert (
        capsys.readouterr().err
        == "in float32: this cpu does not compute in bfloat16 (--amp asks for it all the same)\n"
    )


def test_a_number_says_its_range() -> None:
    import argparse

    for text in ("nan", "x", "1001"):
        with pytest.raises(
            argparse.ArgumentTypeError, match=f"'{text}' is not a number from 0 to 1,000"
        ):
            number(float, 0, 1000)(text)
    assert number(int, 1, 5)("5") == 5
