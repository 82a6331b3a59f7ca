"""python -m export MODEL: the options, messages and exit codes of the command.

Always holds: `--help` and usage errors import nothing heavy. Lines of the report go to standard
output, all else to standard error.
"""

import argparse
import errno
import os
import re
import sys
from pathlib import Path

from runtime import __version__
from runtime.cli.command import EXIT_DONE, EXIT_FAILURE, command, say
from runtime.codec.feature_file import BLOCK, Profile
from runtime.codec.manifest import MAX_SIDE, STANDARD, Preprocessing
from runtime.options import number
from training.rates import parse_lmb
from training.registry import REGISTRY

from .checkpoint import default_lmb, find_checkpoint
from .request import DEFAULT_MAX_PIXELS, Request

EXIT_PARITY = 3


def _lmb(text: str) -> str:
    """An argparse type: a rate weight as it was typed, for a checkpoint's file is named by it."""
    parse_lmb(text)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Export a checkpoint to a bundle: "
        "two ONNX graphs, entropy tables, labels, manifest.",
        epilog="Exit status: 0 done, 1 failure, 2 wrong usage, 3 the graphs do not give what torch "
        "gives, or int8 loses too much.",
    )
    _add_checkpoint_options(parser)
    _add_table_options(parser)
    _add_int8_options(parser)
    _add_size_options(parser)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"{', '.join(REGISTRY)}; or, with --checkpoint, the name of any other in its metadata",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="default: checkpoints/MODEL/lmbL.safetensors or .pt",
    )
    parser.add_argument(
        "--backbone",
        type=Path,
        metavar="FILE",
        help="the ResNet-50 of a checkpoint that holds the bottleneck alone",
    )
    parser.add_argument(
        "--lmb",
        type=_lmb,
        metavar="L",
        help="rate weight the checkpoint was trained with, or their range "
        "(default: what the file of --checkpoint says, or its name; else that of the default "
        "checkpoint: 1.28, for n4_lite2 0.65, for a _vr model 0.16-20.48)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: bundles/MODEL")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="one label a line (default: the checkpoint's, or ImageNet's)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="images for the parity check (default: synthetic ones)",
    )


def _add_table_options(parser: argparse.ArgumentParser) -> None:
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument(
        "--refit",
        type=Path,
        metavar="DIR",
        help="count the symbols of the images in DIR and fit the tables to them",
    )
    tables.add_argument(
        "--own-tables",
        action="store_true",
        help="use the entropy model's own tables, even if there are counts",
    )
    parser.add_argument(
        "--as-is",
        action="store_true",
        help="do not resize the images of --refit, --calibrate and --validate; "
        "crop them to multiples of 8",
    )
    parser.add_argument(
        "--skip-damaged",
        "--skip_damaged",
        action="store_true",
        help="leave out images of --refit, --calibrate and --validate that cannot be read, "
        "and count them",
    )
    parser.add_argument(
        "--counts",
        type=Path,
        metavar="FILE",
        help="counts to fit the tables to (default: CHECKPOINT.counts.json if there is one); "
        "with --refit, where to keep them",
    )
    parser.add_argument(
        "--small",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether the edge writes small files unless asked otherwise "
        "(default: if there are context tables)",
    )


def _add_int8_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "int8"),
        default="auto",
        help="auto: int8 graphs too, if there are activation ranges for them, "
        "and the device chooses; int8: what both ends run",
    )
    parser.add_argument(
        "--device",
        choices=("x86", "arm"),
        default="x86",
        help="processor that int8 graphs are made for: arm has int8 activations, "
        "of the same values (default: x86, which also runs on ARM)",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="take activation ranges on the images in DIR (at least 334), of which every tenth is "
        "held out to judge int8 by; one folder a class, or any folder",
    )
    parser.add_argument(
        "--ranges",
        type=Path,
        metavar="FILE",
        help="activation ranges (default: CHECKPOINT.ranges.json if there is one); "
        "with --calibrate, where to keep them",
    )
    parser.add_argument(
        "--validate",
        type=Path,
        metavar="DIR",
        help="also measure int8 on the images in DIR, which have no part in any choice, "
        "for the manifest (and for --ranges)",
    )


def _add_size_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resize",
        type=number(int, 8, MAX_SIDE),
        default=STANDARD.resize,
        metavar="N",
        help=f"pixels that the edge resizes an image's short side to (default: {STANDARD.resize})",
    )
    parser.add_argument(
        "--crop",
        type=number(int, 8, MAX_SIDE),
        default=STANDARD.crop,
        metavar="N",
        help="side of the central crop that it encodes, a multiple of 8 "
        f"(default: {STANDARD.crop})",
    )
    parser.add_argument(
        "--max-pixels",
        type=number(int, 64, 1 << 28),
        default=DEFAULT_MAX_PIXELS,
        metavar="N",
        help="largest image that both ends take; at least the crop (default: 1048576)",
    )


def _request(argv: list[str] | None) -> Request:
    """Parse the arguments and find the checkpoint. Raises SystemExit, NoCheckpointError."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.model not in REGISTRY and not args.checkpoint:
        known = ", ".join(REGISTRY)
        parser.error(f"argument MODEL: invalid choice: {args.model!r} (choose from {known})")
    # It is the name of the bundle's folder too.
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", args.model):
        parser.error(f"argument MODEL: {args.model!r} is no name of a model")
    if args.own_tables and (args.counts or args.small):
        parser.error("--own-tables leaves no counts to use: leave out --counts and --small")
    if args.crop % BLOCK or args.crop > args.resize:
        parser.error(
            f"--crop {args.crop} is not a multiple of {BLOCK} up to --resize {args.resize}"
        )
    profile = None
    if args.small is not None:
        profile = Profile.CONTEXT if args.small else Profile.STATIC
    return Request(
        model=args.model,
        checkpoint=args.checkpoint
        or find_checkpoint(args.model, args.lmb or default_lmb(args.model)),
        out=args.out or Path("bundles") / args.model,
        backbone=args.backbone,
        lmb=args.lmb,
        labels=args.labels,
        images=args.images,
        refit=args.refit,
        own_tables=args.own_tables,
        as_is=args.as_is,
        skip_damaged=args.skip_damaged,
        counts=args.counts,
        profile=profile,
        precision=args.precision,
        arm=args.device == "arm",
        calibrate=args.calibrate,
        ranges=args.ranges,
        validate=args.validate,
        preprocessing=Preprocessing(args.resize, args.crop),
        max_pixels=args.max_pixels,
    )


@command("export")
def main(argv: list[str] | None = None) -> int:
    """The command. Gives its exit code."""
    request = _request(argv)
    # torch takes seconds to import: only when there is something to export.
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
    from runtime.errors import EdgeCloudError

    from .graphs import ExportError
    from .inputs import read_inputs
    from .int8.gate import GateError
    from .parity import ParityError
    from .stages import write_bundle

    try:
        inputs = read_inputs(request)
        say(f"checkpoint  {request.checkpoint}", sys.stdout)
        write_bundle(inputs, sys.stdout)
        inputs.reading.damage.report()
    except ParityError as error:
        say(f"export: parity failed, no bundle was written: {error}", sys.stderr)
        return EXIT_PARITY
    except GateError as error:
        say(f"export: int8 is not good enough, no bundle was written: {error}", sys.stderr)
        return EXIT_PARITY
    except (EdgeCloudError, ExportError, ValueError, OSError) as error:
        say(f"export: {_remedy(error, request.out)}{error}", sys.stderr)
        return EXIT_FAILURE
    say(_next_commands(request.out), sys.stdout)
    return EXIT_DONE


def _remedy(error: Exception, out: Path) -> str:
    """What to do where the disk is full, to be said before the error itself."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{out} cannot be written: free space there, or name another folder with --out: "
    return ""


def _next_commands(out: Path) -> str:
    """How to use the bundle."""
    is_default = out == Path("bundles") / "ours_n4" and "EDGECLOUD_BUNDLE" not in os.environ
    bundle = "" if is_default else f" --bundle {out}"
    return f"\nnext:\n  edge-encode IMAGE -o feat.bin{bundle}\n  cloud-decode feat.bin{bundle}"
