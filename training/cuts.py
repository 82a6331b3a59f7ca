"""List where a classifier can be cut, and what is left on either side.

    python -m training.cuts --backbone timm:tf_efficientnet_lite2
    python -m training.cuts --backbone torchvision:mobilenet_v3_small --side 160 --json

A cut is a layer that gives a map of features at a quarter, an eighth or a sixteenth of the image's
rows and columns. `training.distil --cut LAYER` takes it. The network is built with random weights:
nothing is fetched.
"""

import argparse
import json
import sys
from importlib.metadata import version

from .backbones import list_cuts
from .command import command, number, say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.cuts", description=(__doc__ or "").split("\n\n")[0]
    )
    add = parser.add_argument
    add("--backbone", required=True, metavar="LIBRARY:NAME", help="torchvision:NAME or timm:NAME")
    add(
        "--side",
        type=number(int, 32, 4096),
        default=224,
        help="of the image that shapes and multiply-adds are of (default: 224)",
    )
    add("--json", action="store_true", help="one JSON object a line instead of the table")
    add("--version", action="version", version=f"%(prog)s {version('edgecloud-features')}")
    return parser


@command("training.cuts")
def main(argv: list[str] | None = None) -> int:
    """The command. Gives its exit code."""
    args = _parser().parse_args(argv)
    cuts = list_cuts(args.backbone, args.side)
    if not args.json:
        say(
            "| cut | channels x rows x columns | million multiply-adds before | and behind | "
            "bytes there, at 8 bits |\n|---|--:|--:|--:|--:|",
            sys.stdout,
        )
    for cut in cuts:
        rows = args.side // cut.stride
        record = {
            "cut": cut.name,
            "shape": [cut.channels, rows, rows],
            "stride": cut.stride,
            "multiply_adds_before": cut.head,
            "multiply_adds_behind": cut.tail,
            "bytes": cut.channels * rows * rows,
        }
        line = (
            f"| {cut.name} | {cut.channels} x {rows} x {rows} | {cut.head / 1e6:.1f} | "
            f"{cut.tail / 1e6:.1f} | {record['bytes']} |"
        )
        say(json.dumps(record) if args.json else line, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
