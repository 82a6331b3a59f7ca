"""The training loop of every run, whatever is trained.

A run is a folder: `last.pt`, its state after the last whole epoch (state.py); `log.jsonl`, a line
per epoch, and `log.png`, the same as curves (log.py). A stopped run resumes from its state.

Always holds: an epoch's random numbers depend on the seed and the epoch alone, so a run that was
killed and resumed sees the same images in the same order as one that was not.
"""

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from .command import TrainingError, on_terminal, say
from .data import Batched, Batches, SeededImages
from .files import check_space
from .folders import Damage
from .log import HELD_OUT, Record, to_line, tracker, write_log
from .options import SMOKE_IMAGES, crop_sides
from .state import Learner, identity_of, resume, save
from .team import Team

_AVERAGE_DECAY = 0.999
_WARM_UP_STEPS = 200


@dataclass(frozen=True)
class Training:
    """What a run trains on, for and is judged by.

    Attributes:
        data: the images as the run's identity records them (state.summarise_files).
        images: side of the crops -> augmented training images (float [3, side, side], label),
            always the same number of them, without those held out.
        loss: model, images (float [N, 3, side, side]), labels (int64 [N]) and the part of the
            run's steps that are done (0 to 1) -> scalars to log, of which "loss" is minimised.
            Both tensors are on the run's device; with --amp it is called under autocast.
        judge: model -> measures on held-out images, to log.
    """

    data: str
    images: Callable[[int], Dataset]
    loss: Callable[[nn.Module, Tensor, Tensor, float], dict[str, Tensor]]
    judge: Callable[[nn.Module], dict[str, float]]


def run_epochs(
    args: argparse.Namespace,
    team: Team,
    run: Path,
    training: Training,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    damage: Damage,
) -> nn.Module:
    """Train for the epochs that the run in folder `run` has left; returns what to keep, on the CPU.

    That is the model, or its moving average with --ema. Raises TrainingError (other options than
    the state's, too few images, a loss that is not finite), OutputError, DamagedImageError.
    """
    sides = crop_sides(args)
    _refuse_too_few(args, team, len(_images(args, training, sides[0])))
    state_file = run / "last.pt"
    if args.resume and not state_file.exists():
        raise TrainingError(f"there is no {state_file} to resume from: leave out --resume to start")
    model.to(team.device).to(memory_format=torch.channels_last)
    if team.leads:
        weights = model.state_dict().values()
        check_space(run, sum(value.numel() * value.element_size() for value in weights))
    learner = Learner(model, optimizer, _moving_average(model) if args.ema else None)
    # Before resuming, which sets the optimizer's rates to those of the last step.
    epochs = _Epochs(args, team, training, learner, damage)

    identity = identity_of(args, team.processes, training.data)
    log: list[Record] = []
    if state_file.exists():
        log = resume(state_file, identity, args, len(sides), learner)
        if team.leads:
            write_log(run, log)
            say(f"resuming after epoch {len(log)} of {state_file}", sys.stderr)
    track = tracker(args) if team.leads else lambda record: None
    if args.eval_first and not log and team.leads:
        say(to_line({"epoch": 0, **training.judge(learner.result)}), sys.stdout)

    for epoch in range(len(log), len(sides)):
        started = time.monotonic()
        record: Record = {"epoch": epoch + 1, "of": len(sides), "size": sides[epoch]}
        record |= epochs.train(epoch)
        left_out = team.total(damage.count_lately())
        if team.leads:
            if (epoch + 1) % args.eval_per == 0 or epoch + 1 == len(sides):
                measures = training.judge(learner.result)
                record |= {HELD_OUT + name: value for name, value in measures.items()}
            if left_out:
                record["left_out"] = left_out
            record["seconds"] = round(time.monotonic() - started, 1)
            log.append(record)
            save(state_file, identity, log, learner)
            write_log(run, log)
            say(to_line(record), sys.stdout)
            track(record)
        team.wait()
    damage.report()
    return learner.result.cpu()


class _Epochs:
    """Trains one epoch after another; holds what they share."""

    def __init__(
        self,
        args: argparse.Namespace,
        team: Team,
        training: Training,
        learner: Learner,
        damage: Damage,
    ):
        self.args, self.team, self.training = args, team, training
        self.learner, self.damage = learner, damage
        self.sides = crop_sides(args)
        self.full_rates = [group["lr"] for group in learner.optimizer.param_groups]
        self.student: nn.Module = learner.model
        if team.processes > 1:
            self.student = DistributedDataParallel(
                learner.model, find_unused_parameters=args.ddp_find
            )

    def train(self, epoch: int) -> dict[str, float]:
        """Train epoch `epoch`, counted from 0; gives the means of the loss terms.

        Raises TrainingError if the loss is not finite, DamagedImageError, DataError.
        """
        loader, accumulated = self._loader(epoch), self.args.accum_num
        steps = len(loader) // accumulated
        names: tuple[str, ...] = ()
        sums = torch.zeros(())
        self.learner.model.train()
        bar = tqdm(
            loader,
            desc=f"epoch {epoch + 1}/{len(self.sides)} at {self.sides[epoch]}",
            disable=not (self.team.leads and on_terminal()),
        )
        for index, (image, label) in enumerate(bar):
            if index == steps * accumulated:
                break
            done, total = epoch * steps + index // accumulated, steps * len(self.sides)
            self._set_rates(_rate_factor(done, total, min(_WARM_UP_STEPS, steps)))
            completes_step = index % accumulated == accumulated - 1
            terms = self._accumulate(image, label, done / total, completes_step)
            if not torch.isfinite(terms["loss"]):
                raise TrainingError(
                    f"the loss is {terms['loss'].item()} at epoch {epoch + 1}, batch {index + 1}; "
                    "try a smaller --lr"
                )
            if completes_step:
                self._step()
            names = tuple(terms)
            sums = sums + torch.stack([term.detach().cpu() for term in terms.values()])
            if index % 10 == 9:
                means = (sums / (index + 1)).tolist()
                bar.set_postfix(
                    {name: f"{mean:.3f}" for name, mean in zip(names, means, strict=True)}
                )
        return dict(zip(names, (sums / (steps * accumulated)).tolist(), strict=True))

    def _loader(self, epoch: int) -> Batched:
        args, team = self.args, self.team
        seed = args.fixseed * 10_000 + epoch
        torch.manual_seed(seed * 1_000 + team.rank)
        images = _images(args, self.training, self.sides[epoch])
        batches = Batches(len(images), args.batch_size, seed, team.rank, team.processes)
        return Batched(
            SeededImages(images, seed),
            self.damage,
            batch_sampler=batches,
            num_workers=args.workers,
        )

    def _accumulate(
        self, image: Tensor, label: Tensor, done: float, completes_step: bool
    ) -> dict[str, Tensor]:
        """Add a batch's gradients to those of its step; gives the loss terms."""
        device = self.team.device
        image = image.to(device, memory_format=torch.channels_last, non_blocking=True)
        label = label.to(device, non_blocking=True)
        # Gradients are summed over processes once per step, with its last batch.
        unsynchronised = (
            self.student.no_sync()
            if isinstance(self.student, DistributedDataParallel) and not completes_step
            else contextlib.nullcontext()
        )
        with unsynchronised:
            with torch.autocast(device.type, torch.bfloat16, enabled=self.args.amp):
                terms = self.training.loss(self.student, image, label, done)
            (terms["loss"] / self.args.accum_num).backward()
        return terms

    def _set_rates(self, factor: float) -> None:
        groups = self.learner.optimizer.param_groups
        for group, rate in zip(groups, self.full_rates, strict=True):
            group["lr"] = rate * factor

    def _step(self) -> None:
        model, optimizer = self.learner.model, self.learner.optimizer
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.learner.average:
            self.learner.average.update_parameters(model)


def _moving_average(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(_AVERAGE_DECAY), use_buffers=True)


def _images(args: argparse.Namespace, training: Training, side: int) -> Subset:
    """The training images of an epoch: all, or a few of them with --smoke, spread evenly."""
    images = training.images(side)
    count = len(images)  # type: ignore[arg-type]
    kept = min(SMOKE_IMAGES, count) if args.smoke else count
    return Subset(images, [index * count // kept for index in range(kept)])


def _refuse_too_few(args: argparse.Namespace, team: Team, images: int) -> None:
    together = args.batch_size * team.processes * args.accum_num
    if images < together:
        raise TrainingError(
            f"{images} images do not fill one batch of {together}: "
            "give a smaller --batch_size, or more images"
        )


def _rate_factor(step: int, steps: int, warm_up: int) -> float:
    """Linear warm-up, then a cosine to 1 % of the rate."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
