"""Puts the tables of benchmarks/results/*.json into the pages that quote them.

    python benchmarks/pages.py            write them
    python benchmarks/pages.py --check    say which pages are not as their records (exit 1)

A table stands between `<!-- record: NAME -->` and `<!-- end -->`, and is what the benchmark of that
name prints for its kept record. Nobody edits it by hand.

Always holds: everything outside the markers stays as it is.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import breakeven, coder, folders, jpeg, latency, rate_accuracy, scaling, serving
from runtime.files import write_atomically

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
PAGES = ("README.md", "docs", "benchmarks/results/README.md")
_BLOCK = re.compile(r"(<!-- record: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


class PageError(ValueError):
    """A page asks for a table that there is not."""


def _record(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def _headline() -> str:
    """The six figures of README.md, each with its record and the command that made it."""
    accuracy, rates = _record("accuracy_ours_n4_lmb1.28"), _record("rate_accuracy")
    curve = next(one for one in rates["curves"] if one["curve"] == "ours_n4")
    codec = rates["best_codec_at_target"]
    times = {row["engine"]: row for row in _record("latency")["rows"] if row["model"] == "ours_n4"}
    ms = {engine: row["total_ms"]["median"] for engine, row in times.items()}
    theirs = times["cpu fp32"]["torch_ms"]["median"]
    coders = {row["coder"]: row for row in _record("coder")["results"][0]["rows"]}
    own, compressai = coders["ours"], coders["CompressAI, EntropyBottleneck"]
    service = _record("serving")["cloud-serve, int8"]
    folder = max(_record("folders")["rows"], key=lambda row: row["images_a_second"]["median"])
    rows = [
        (
            f"top-1 on {accuracy['images']:,} validation images of Imagenette, at {accuracy['bytes']['mean']:.0f} bytes an image",
            f"{accuracy['top1']['share']:.1%} (its teacher, a whole ResNet-50: {rates['teacher_top1']:.1%})",
            "training.evaluate",
            "accuracy_ours_n4_lmb1.28",
        ),
        (
            f"bytes for one point of top-1 less than the teacher ({rates['target_top1']:.1%})",
            f"{curve['bytes_at_target']:.0f}, {curve['share_of_best_codec']:.0%} of the {codec['bytes']:,.0f} that {codec['codec']} takes",
            "rate_accuracy.py",
            "rate_accuracy",
        ),
        (
            "encode a 224x224 image, graph and coder",
            f"int8 {ms['cpu int8']:.1f} ms, {ms['openvino int8']:.1f} with OpenVINO; "
            f"float32 {ms['cpu fp32']:.1f}; torch and CompressAI {theirs:.1f}",
            "latency.py",
            "latency",
        ),
        (
            "the coder alone, 50,176 symbols, encode and decode",
            f"{own['encode_ms']:.3f} and {own['decode_ms']:.3f} ms; "
            f"CompressAI {compressai['encode_ms']:.2f} and {compressai['decode_ms']:.2f}",
            "coder.py",
            "coder",
        ),
        (
            "encode a folder of 640x480 JPEGs, decoding included",
            f"{folder['images_a_second']['median']:.0f} images/s ({folder['engine']})",
            "folders.py",
            "folders",
        ),
        (
            "serve: images/s, of what the cloud graph alone can do",
            f"{service['capacity']:.1f} ({service['engine']}), {service['capacity_of_graph']['median']:.0%}",
            "serving.py",
            "serving",
        ),
    ]
    lines = [
        f"| {what} | {figure} | [{command}](benchmarks/results/{record}.json) |"
        for what, figure, command, record in rows
    ]
    return "\n".join(["| what | measured | record |", "|---|---|---|", *lines])


def _records() -> str:
    """Every kept record: where it comes from, and when."""
    lines = ["| record | benchmark | processor | commit |", "|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        record = _record(path.stem)
        machine = record.get("machine") or {}
        cells = (
            f"[{path.stem}]({path.name})",
            record.get("benchmark", path.stem),
            machine.get("processor", "-"),
            record.get("commit", "-"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _networks() -> str:
    """The networks of breakeven.json: what is assumed of each, and the fastest way on it."""
    record = _record("breakeven")
    factors = [f"{entry['device_factor']:g} x" for entry in record["advice"]]
    lines = [
        f"| network | uplink | round trip | {' | '.join(factors)} | assumed of |",
        f"|---|--:|--:|{'---|' * len(factors)}---|",
    ]
    for network in record["networks"]:
        fastest = [row["fastest"] for row in network["device_factors"]]
        cells = (
            network["name"],
            breakeven.rate(network["uplink_kbps"]),
            f"{network['rtt_ms']:,g} ms",
            *fastest,
            network["assumption"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _contexts() -> str:
    """The choices of context that contexts.py compared."""
    lines = ["| tables chosen by | bytes an image | change |", "|---|--:|--:|"]
    rows = _record("contexts")["results"]
    return "\n".join(
        [
            *lines,
            *(
                f"| {row['tables']} | {row['ideal_bytes']:.1f} | {row['change']:+.1%} |"
                for row in rows
            ),
        ]
    )


# What stands between the markers of a name.
TABLES: dict[str, Callable[[], str]] = {
    "headline": _headline,
    "records": _records,
    "latency": lambda: latency.table(
        _record("latency")["rows"], _record("latency")["peak_multiply_adds"]
    ),
    "latency-files": lambda: latency.file_table(_record("latency")["rows"]).split("\n\n", 1)[1],
    "coder": lambda: coder.text(_record("coder")["results"]),
    "serving": lambda: serving.table(_record("serving")),
    "serving-summary": lambda: _list(serving.summary(_record("serving"))),
    "folders": lambda: folders.table(_record("folders")["rows"]),
    "jpeg": lambda: jpeg.text(_record("jpeg")["times"], _record("jpeg")["accuracy"]),
    "breakeven": lambda: breakeven.text(_record("breakeven")).split("\n\n", 1)[0],
    "contexts": _contexts,
    "networks": _networks,
    "rate-accuracy": lambda: rate_accuracy.text(_record("rate_accuracy")).split("\n\n")[1],
    "scaling": lambda: scaling.table(_record("scaling")),
}


def _list(lines: str) -> str:
    return "".join(f"- {line}\n" for line in lines.splitlines())


def rendered(text: str) -> str:
    """A page with its tables as the records give them. Raises PageError."""

    def table(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise PageError(f"no record is called {match[2]!r}: choose one of {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[match[2]]().strip()}\n{match[4]}"

    return _BLOCK.sub(table, text)


def pages() -> list[Path]:
    """README.md, every page of docs/, and the list of records."""
    roots = [PROJECT / name for name in PAGES]
    return [
        page for root in roots for page in (sorted(root.rglob("*.md")) if root.is_dir() else [root])
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks/pages.py", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing, and name the pages that are not as their records",
    )
    args = parser.parse_args(argv)
    status = 0
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = rendered(old)
        if new == old:
            continue
        print(
            f"{page.relative_to(PROJECT)} {'is not as its records' if args.check else 'is written'}"
        )
        if args.check:
            status = 1
        else:
            write_atomically(page, new.encode())
    return status


if __name__ == "__main__":
    sys.exit(main())
