"""Runs in their own processes: several that share the work, and one that is killed and resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_runs import options

from training.checkpoint import load_model

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_and_two_batches_a_step_are_one_large_batch(
    data: Path, backbone: Path, tmp_path: Path
) -> None:
    """Without what differs by process: batch norm (the tail is frozen) and the rate's noise."""

    def run(name: str, launcher: list[str], *more: str) -> dict[str, torch.Tensor]:
        arguments = options(
            data,
            backbone,
            tmp_path / name,
            "--model",
            "ours_n0_enc",
            "--model_args",
            "bpp_lmb=0",
            "--no-amp",
            *more,
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run(
            [*launcher, "-m", "training.train", *arguments],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote") == 1
        return torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]

    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    one = run("one", [sys.executable])
    two = run("two", torchrun, "--batch_size", "4", "--ddp_find")
    accumulated = run("accumulated", [sys.executable], "--batch_size", "4", "--accum_num", "2")
    for key, value in one.items():
        for other in (two, accumulated):
            assert torch.allclose(value.float(), other[key].float(), atol=1e-5, rtol=1e-3), key


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_killed_run_resumes_and_ends_as_an_undisturbed_one(
    data: Path, backbone: Path, tmp_path: Path, optimizer: str
) -> None:
    def command(run: Path) -> list[str]:
        return [
            sys.executable,
            "-m",
            "training.train",
            *options(data, backbone, run, "--optimizer", optimizer),
        ]

    subprocess.run(command(tmp_path / "whole"), cwd=PROJECT, check=True, capture_output=True)
    log = tmp_path / "killed" / "log.jsonl"
    with subprocess.Popen(
        command(tmp_path / "killed"),
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and not log.exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    again = subprocess.run(
        command(tmp_path / "killed"), cwd=PROJECT, check=True, capture_output=True, text=True
    )
    assert "resuming after epoch" in again.stderr
    whole, killed = (
        load_model(tmp_path / name / "lmb0.5.safetensors", "ours_n0")[0].state_dict()
        for name in ("whole", "killed")
    )
    for key, value in whole.items():
        assert torch.allclose(value.float(), killed[key].float(), atol=1e-3, rtol=1e-2), key
    assert not list(tmp_path.glob("killed/.*")), "temporary files are left"
