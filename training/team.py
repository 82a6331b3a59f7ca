"""The processes of a run, the device of each, and whether they compute in bfloat16.

torchrun starts the processes and sets WORLD_SIZE, RANK and LOCAL_RANK; without it a run is one
process. The process of rank 0 leads: it alone measures, writes files and prints.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import distributed

from .command import TrainingError, say


@dataclass(frozen=True)
class Team:
    """The processes that torchrun started, or this one alone."""

    rank: int
    processes: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process measures, writes and prints for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes get here."""
        if self.processes > 1:
            distributed.barrier()

    def total(self, count: int) -> int:
        """The sum of all processes' counts."""
        if self.processes == 1:
            return count
        counts = torch.tensor(count, device=self.device)
        distributed.all_reduce(counts)
        return int(counts)


@contextlib.contextmanager
def assemble(device: str) -> Iterator[Team]:
    """Connect the processes and choose a device: 'auto', 'cpu', 'cuda' or 'cuda:N'.

    Raises TrainingError if the device is not available.
    """
    processes, rank, local = (
        int(os.environ.get(name, default))
        for name, default in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(f"cuda:{local}" if device == "cuda" and processes > 1 else device)
        torch.zeros(1, device=chosen).item()  # fails on the device "meta", which has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TrainingError(
            f"--device {device} is not available here ({str(error).splitlines()[0]}): "
            "choose cpu or cuda"
        ) from error
    if processes > 1:
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Team(rank, processes, chosen)
    finally:
        if processes > 1:
            distributed.destroy_process_group()


def settle_precision(args: argparse.Namespace, team: Team) -> None:
    """Set --amp where it was not given, because the recipe records what was chosen."""
    if args.amp is None:
        args.amp = computes_in_bfloat16(team.device)
        if not args.amp and team.leads:
            say(
                f"in float32: this {team.device.type} does not compute in bfloat16 "
                "(--amp asks for it all the same)",
                sys.stderr,
            )


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 instructions; without them bfloat16 takes twice as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.10, which cannot tell on ARM
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
