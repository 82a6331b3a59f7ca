"""When to split, send a picture to the cloud, or run the whole network on the device.

    python benchmarks/breakeven.py [--device-factor F...] [--keep] [--json]    # LoRa to Wi-Fi
    python benchmarks/breakeven.py --uplink KBPS --rtt MS                      # your network
    python benchmarks/breakeven.py --parts benchmarks/results/breakeven.json   # measures nothing

The time of an image, from a decoded picture to its class, is

    device x device factor + round trip + 8 x bytes / uplink + cloud x cloud factor

and for a network that runs on the device, the first of these alone. The device's and the cloud's
parts are measured on this machine (breakeven_parts.py): resizing, encoder graph and coder; coder
and cloud graph; each codec's encoder; each codec's decoder and the teacher, a whole ResNet-50;
the teacher alone. Bytes are means over the validation images, from the records of accuracy.py
and codecs.py. breakeven_model.py has the arithmetic and the networks. docs/breakeven.md says
more.

Always holds: a wrong output stops the benchmark. Bytes are those of files alone: no protocol's
headers are counted, and no time to open a connection.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.breakeven_figure import draw
from benchmarks.breakeven_model import NETWORKS, Network, Way, rate, report, with_cloud_factor
from benchmarks.breakeven_parts import measure
from benchmarks.common import (
    PICTURE,
    PROJECT,
    RESULTS,
    BenchmarkError,
    add_output_options,
    add_runs_option,
    add_threads_option,
    as_json,
    header,
    markdown,
    new_parser,
    write_record,
)
from benchmarks.rate_accuracy import RecordsError
from runtime.codec import strict_json
from runtime.errors import EdgeCloudError
from runtime.options import number

TEACHER = PROJECT / "checkpoints" / "imagenette_resnet50.safetensors"
FACTORS = (1.0, 10.0, 50.0)


def parts_table(record: dict[str, Any]) -> str:
    """What each way takes on the device and in the cloud, as a Markdown table."""
    heads = ["way", "on the device, ms", "in the cloud, ms", "bytes", "top-1"]
    rows = [
        [
            way.name,
            f"{way.device_ms:.1f}",
            f"{way.cloud_ms:.1f}",
            f"{way.bytes:.0f}",
            f"{way.top1:.1%}",
        ]
        for way in _ways(record)
    ]
    return markdown(heads, rows)


def networks_table(record: dict[str, Any]) -> str:
    """The networks, what is assumed of each, and the fastest way for each device factor."""
    factors = [f"{entry['device_factor']:g} x" for entry in record["advice"]]
    heads = ["network", "uplink", "round trip", *factors, "assumption"]
    rows = [
        [
            network["name"],
            rate(network["uplink_kbps"]),
            f"{network['rtt_ms']:,g} ms",
            *(row["fastest"] for row in network["device_factors"]),
            network["assumption"],
        ]
        for network in record["networks"]
    ]
    return markdown(heads, rows, align="lrr" + "l" * len(factors) + "l")


def text(record: dict[str, Any]) -> str:
    """The parts, the time of each way on each network, and when to split."""
    heads = ["network", "uplink", "round trip, ms", *(f"{way.name}, ms" for way in _ways(record))]
    lines = [parts_table(record)]
    for index, entry in enumerate(record["advice"]):
        factor = entry["device_factor"]
        rows = []
        for network in record["networks"]:
            row = network["device_factors"][index]
            times = [
                f"**{ms:.0f}**" if name == row["fastest"] else f"{ms:.0f}"
                for name, ms in row["ms"].items()
            ]
            uplink, rtt = rate(network["uplink_kbps"]), f"{network['rtt_ms']:g}"
            rows.append([network["name"], uplink, rtt, *times])
        slower = f" {factor:g} times slower than" if factor != 1 else ":"
        lines += ["", f"device{slower} this machine", "", markdown(heads, rows)]
    return "\n".join([*lines, "", *(entry["text"] for entry in record["advice"])])


def _ways(record: dict[str, Any]) -> list[Way]:
    return with_cloud_factor([Way(**way) for way in record["ways"]], record["cloud_factor"])


def _read_parts(file: Path) -> tuple[list[Way], dict[str, Any]]:
    """The ways of a record, and its other members. Raises RecordsError, ValueError, OSError."""
    record = strict_json.loads(file.read_text())
    if record["benchmark"] != "breakeven":
        raise RecordsError(f"{file} is a record of {record['benchmark']}, not of breakeven")
    computed = ("cloud_factor", "ways", "networks", "advice")
    others = {key: value for key, value in record.items() if key not in computed}
    return [Way(**way) for way in record["ways"]], others


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    _add_assumptions(parser)
    parser.add_argument(
        "--image", type=Path, default=PICTURE, metavar="FILE", help="default: the demo's picture"
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        default=TEACHER,
        metavar="FILE",
        help="the codecs' ResNet-50 (default: checkpoints/imagenette_resnet50.safetensors)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "int8"),
        default="fp32",
        help="of split's two graphs (default: fp32, as the teacher)",
    )
    add_threads_option(parser, "every part")
    add_runs_option(parser, "part", default=100, least=20)
    parser.add_argument(
        "--parts",
        type=Path,
        metavar="FILE",
        help="a record of this benchmark, whose measurements are used instead of new ones",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="three runs, to see that everything works; nothing is kept",
    )
    add_output_options(parser, keep="breakeven.json and .png")
    return parser


def _add_assumptions(parser: argparse.ArgumentParser) -> None:
    """Options for what cannot be measured here: the network, and how fast device and cloud are."""
    parser.add_argument(
        "--uplink",
        type=number(float, 0.001, 1e9),
        metavar="KBPS",
        help="one network's uplink, in kilobits a second (with --rtt)",
    )
    parser.add_argument(
        "--rtt", type=number(float, 0, 1e6), metavar="MS", help="its round trip, in milliseconds"
    )
    parser.add_argument(
        "--device-factor",
        type=number(float, 1e-6, 1e6),
        nargs="+",
        default=list(FACTORS),
        metavar="F",
        help="how many times slower than this machine the device is (default: 1 10 50)",
    )
    parser.add_argument(
        "--cloud-factor",
        type=number(float, 1e-6, 1e6),
        default=1.0,
        metavar="F",
        help="the same for the cloud; 0.1 is ten times faster (default: 1)",
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.uplink is None) != (args.rtt is None):
        parser.error("a network is --uplink and --rtt")
    if args.keep and (args.smoke or args.uplink is not None):
        parser.error("--keep is for a whole run: leave out --smoke, --uplink and --rtt")
    networks = (
        NETWORKS if args.uplink is None else (Network("yours", args.uplink, args.rtt, "given"),)
    )
    try:
        if args.parts:
            ways, head = _read_parts(args.parts)
        else:
            head = header("breakeven", args.threads)
            runs = 3 if args.smoke else args.runs
            ways, details = measure(args.image, args.teacher, args.threads, runs, args.precision)
            head |= {"runs": runs, **details}
        record = {**head, **report(ways, networks, args.device_factor, args.cloud_factor)}
        if args.keep:
            write_record(RESULTS / "breakeven.json", record)
            draw(record, RESULTS / "breakeven.png")
    except (BenchmarkError, EdgeCloudError, ValueError, KeyError, TypeError, OSError) as error:
        print(f"breakeven: {error}", file=sys.stderr)
        return 1
    print(as_json(record) if args.json else text(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
