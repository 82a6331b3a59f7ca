"""Every numeric option has a range, and a value outside it is a usage error."""

import argparse
import contextlib
import importlib
import math
from types import ModuleType

import pytest

MODULES = [
    *(
        f"runtime.cli.{name}"
        for name in ("edge_encode", "cloud_decode", "cloud_serve", "edge_send")
    ),
    "export.cli",
    *(
        f"training.{name}"
        for name in ("train", "distil", "cuts", "backbone", "evaluate", "average", "shrink")
    ),
    *(
        f"benchmarks.{name}"
        for name in (
            "accuracy",
            "breakeven",
            "codecs",
            "coder",
            "contexts",
            "folders",
            "jpeg",
            "latency",
        )
    ),
    *(f"benchmarks.{name}" for name in ("rate_accuracy", "scaling", "serving", "reference_server")),
]
WRONG = ["nan", "-1", "inf", "-inf", "1e99", "1e999", "9" * 40, "0x10", "", "one"]


def base(parser: argparse.ArgumentParser) -> list[str]:
    """The required arguments of a parser."""
    words = []
    for action in parser._actions:
        value = str(next(iter(action.choices))) if action.choices else "http://x"
        if not action.option_strings:
            words += [] if action.nargs == "*" else [value]
        elif action.required:
            words.append(f"{action.option_strings[-1]}={1 if action.type else value}")
    return words


def numbers(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options that take a number, or several."""
    from pathlib import Path

    return [action for action in parser._actions if action.type not in (None, Path, str)]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("text", [*WRONG, "0"])
def test_a_number_is_in_its_range_or_a_usage_error(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module: ModuleType = importlib.import_module(name)
    parser = module._parser()
    for action in numbers(parser):
        option = action.option_strings[-1]
        arguments = [*base(parser), f"{option}={text}"]
        if action.type in (int, float):  # the command checks the range after parsing
            if not text.isdigit():
                with pytest.raises(SystemExit) as exit_info:
                    module.main(
                        [
                            *arguments,
                            *(["--bundle=/nowhere"] if "--bundle" in parser.format_help() else []),
                        ]
                    )
                assert exit_info.value.code == 2, f"{name} {option}={text}"
            continue
        value = None
        with contextlib.suppress(SystemExit):  # argparse always exits with 2
            value = getattr(parser.parse_args(arguments), action.dest)
        if value is None:
            assert option in capsys.readouterr().err
            continue
        for one in value if isinstance(value, list) else [value]:
            assert text == "0" or option == "--optimizer", f"{name} {option}={text} is taken"
            assert math.isfinite(float(one)), f"{name} {option}={text} is taken as {one}"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", ["--held_out=-1"]),
        ("train", ["--val_size=4"]),
        ("train", ["--train_size=96:0"]),
        ("train", ["--train_size=96:1,0:3"]),
        ("train", ["--lr=-1"]),
        ("train", ["--wdecay=nan"]),
        ("train", ["--val_crop_r=0"]),
        ("train", ["--crop_area=0"]),
        ("train", ["--model_args=bpp_lmb=nan"]),
        ("train", ["--model_args=bpp_lmb=1e300"]),
        ("backbone", ["--label_smoothing=2"]),
        ("average", ["--train_size=60"]),
        ("average", ["--images=1"]),
        ("evaluate", ["--images=1"]),
        ("evaluate", ["-b=0"]),
    ],
)
def test_numbers_that_used_to_fail_later(
    name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = importlib.import_module(f"training.{name}")._parser()
    with pytest.raises(SystemExit) as exit_info:
        parser.parse_args([*base(parser), *arguments])
    assert exit_info.value.code == 2
    assert "argument" in capsys.readouterr().err


def test_the_references_options() -> None:
    """Options of the reference implementation are accepted (docs/training.md)."""
    train, evaluate = (
        importlib.import_module(f"training.{name}")._parser() for name in ("train", "evaluate")
    )
    args = train.parse_args(
        [
            "--data",
            "x",
            "--fixseed",
            "--lr_sched",
            "cosine",
            "--optimizer",
            "adam",
            "--workers",
            "0",
            "--no-ema",
        ]
    )
    assert (args.model, args.fixseed, args.optimizer, args.workers) == ("ours_n4", 0, "adamw", 0)
    assert train.parse_args(["--data", "x", "--fixseed", "1764288000"]).fixseed == 1764288000
    args = evaluate.parse_args(["--data_root", "x", "--models", "ours_n0", "ours_n4", "-w", "0"])
    assert (str(args.data), args.model, args.workers) == ("x", ["ours_n0", "ours_n4"], 0)


def test_a_seed_as_large_as_the_time_orders_and_crops_images() -> None:
    from training.data import Batches

    torch = pytest.importorskip("torch")
    assert len(list(Batches(8, 4, 1764288000 * 10_000 + 3))) == 2
    with contextlib.suppress(StopIteration):
        torch.manual_seed((1764288000 * 10_000 * 10_000_019 + 5) % 2**63)
