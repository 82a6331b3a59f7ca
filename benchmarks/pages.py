"""Writes the tables of benchmarks/results/*.json into the pages that quote them.

    python benchmarks/pages.py            write the tables
    python benchmarks/pages.py --check    name the pages that differ from their records (exit 1)

A table stands between `<!-- record: NAME -->` and `<!-- end -->`. It is what the benchmark prints
for its kept record; nobody edits it by hand.

Always holds: everything outside the markers stays as it is.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    breakeven,
    budgets,
    coder,
    contexts,
    edges,
    folders,
    jpeg,
    kernels,
    latency,
    latency_files,
    rate_accuracy,
    scaling,
    serving_report,
)
from benchmarks.common import PROJECT, RESULTS, markdown, new_parser, read_record
from benchmarks.curves import Point, top1_at
from benchmarks.rate_accuracy_figure import compared_in_bytes
from runtime.files import write_atomically

_VARIABLE = "accuracy_ours_n4_vr_lmb0.16-20.48"
PAGES = ("README.md", "docs", "benchmarks/results/README.md")
_BLOCK = re.compile(r"(<!-- record: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


class PageError(ValueError):
    """A page asks for a table that does not exist."""


def _headline() -> str:
    """README's figures, each with its record and the command that made it."""
    rows = [
        (*_accuracy_figure(), "accuracy.py", "accuracy_ours_n4_lmb1.28"),
        (*_bytes_figure(), "rate_accuracy.py", "rate_accuracy"),
        (*_variable_figure(), "accuracy.py", _VARIABLE),
        (*_general_figure(), "accuracy.py", "accuracy_n4_lite2_lmb0.65"),
        (*_latency_figure(), "latency.py", "latency"),
        (*_coder_figure(), "coder.py", "coder"),
        (*_folder_figure(), "folders.py", "folders"),
        (*_serving_figure(), "serving.py", "serving"),
    ]
    cells = [
        [what, figure, f"[{command}](benchmarks/results/{record}.json)"]
        for what, figure, command, record in rows
    ]
    return markdown(["what", "measured", "record"], cells, align="lll")


def _accuracy_figure() -> tuple[str, str]:
    record = read_record("accuracy_ours_n4_lmb1.28")
    images, size = record["images"], record["bytes"]["mean"]
    teacher = read_record("rate_accuracy")["teacher_top1"]
    return (
        f"top-1 on {images:,} validation images of Imagenette, at {size:.0f} bytes an image",
        f"{record['top1']['share']:.1%} (its teacher, a whole ResNet-50: {teacher:.1%})",
    )


def _bytes_figure() -> tuple[str, str]:
    record = read_record("rate_accuracy")
    codec, found = record["best_codec_at_target"], compared_in_bytes(record)
    what = f"bytes for one point of top-1 less than the teacher ({record['target_top1']:.1%})"
    if not codec or not found:
        return what, "-"
    name, size = found
    return (
        what,
        f"{size:.0f} ({name}), {size / codec['bytes']:.0%} of the {codec['bytes']:,.0f} that "
        f"{codec['codec']} takes",
    )


def _variable_figure() -> tuple[str, str]:
    low, *_, high = read_record(_VARIABLE)["points"]
    return (
        f"ours_n4_vr, one checkpoint for all rates: top-1 at {low['bytes']['mean']:,.0f} and "
        f"{high['bytes']['mean']:,.0f} bytes an image",
        f"{low['top1']['share']:.1%}; {high['top1']['share']:.1%}",
    )


def _general_figure() -> tuple[str, str]:
    seen, held_out = (read_record(f"{kind}_n4_lite2_lmb0.65") for kind in ("accuracy", "sample"))
    return (
        f"n4_lite2, top-1 of 1,000 classes: these images, at {seen['bytes']['mean']:,.0f} bytes; "
        f"{held_out['images']} held-out pictures of as many classes",
        "; ".join(
            f"{record['top1']['share']:.1%} (its teacher: {record['teacher_top1']['share']:.1%})"
            for record in (seen, held_out)
        ),
    )


def _latency_figure() -> tuple[str, str]:
    rows = [row for row in read_record("latency")["rows"] if row["model"] == "ours_n4"]
    ms = {row["engine"]: row["total_ms"]["median"] for row in rows}
    return (
        "encode a 224x224 image, graph and coder",
        f"native {ms['native int8']:.1f} ms; onnxruntime int8 {ms['cpu int8']:.1f}, float32 "
        f"{ms['cpu fp32']:.1f}; torch and CompressAI {rows[0]['torch_ms']['median']:.1f}",
    )


def _coder_figure() -> tuple[str, str]:
    rows = {row["coder"]: row for row in read_record("coder")["results"][0]["rows"]}
    ours, theirs = rows["ours"], rows["CompressAI, EntropyBottleneck"]
    return (
        "the coder alone, 50,176 symbols, encode and decode",
        f"{ours['encode_ms']:.3f} and {ours['decode_ms']:.3f} ms; "
        f"CompressAI {theirs['encode_ms']:.2f} and {theirs['decode_ms']:.2f}",
    )


def _folder_figure() -> tuple[str, str]:
    rows = read_record("folders")["rows"]
    best = max(rows, key=lambda row: row["images_a_second"]["median"])
    return (
        "encode a folder of 640x480 JPEGs, decoding included",
        f"{best['images_a_second']['median']:.0f} images/s ({best['engine']})",
    )


def _serving_figure() -> tuple[str, str]:
    service = read_record("serving")[serving_report.INT8]
    share = service["capacity_of_graph"]["median"]
    return (
        "serve: images/s, and their share of what the cloud graph alone can do",
        f"{service['capacity']:.1f} ({service['engine']}), {share:.0%}",
    )


def _general() -> str:
    """The model of a thousand classes beside its teacher, on two sets of images."""
    heads = ["images", "bytes", "top-1 of 1,000", "top-5", "of the images' own classes"]
    rows = []
    for record in (read_record(f"{kind}_n4_lite2_lmb0.65") for kind in ("accuracy", "sample")):
        top1, teacher = record["top1"]["share"], record["teacher_top1"]["share"]
        among, teacher_among = record["top1_among"], record["teacher_top1_among"]["share"]
        rows.append(
            [
                f"{record['images']:,} of {record['data']}",
                f"{record['bytes']['mean']:,.0f}",
                f"{top1:.1%} (its teacher: {teacher:.1%})",
                f"{record['top5']['share']:.1%}",
                f"{among['share']:.1%} of {among['classes']} ({teacher_among:.1%})",
            ]
        )
    return markdown(heads, rows)


def _variable() -> str:
    """The checkpoint of all rates beside those of one, at the bytes of each of them.

    All have one teacher: that of the records with the most checkpoints of one rate.
    """
    record = read_record("rate_accuracy")
    points = max(
        (_points(one) for one in (record, *record["other_teachers"])),
        key=lambda found: len(found["ours_n4"]),
    )
    heads = ["checkpoint of one rate", "bytes", "its top-1", "ours_n4_vr's", "difference, points"]
    rows = []
    for one in points["ours_n4"]:
        ours = top1_at(points["ours_n4_vr"], one.bpp)
        found = ["-", "-"] if ours is None else [f"{ours:.1%}", f"{100 * (ours - one.top1):+.1f}"]
        rows.append([f"ours_n4, {one.name}", f"{one.bytes:,.0f}", f"{one.top1:.1%}", *found])
    return markdown(heads, rows)


def _points(record: dict[str, Any]) -> dict[str, list[Point]]:
    """The points of each curve of one teacher."""
    return {row["curve"]: [Point(**one) for one in row["points"]] for row in record["curves"]}


def _cut() -> str:
    """What files are worth that `max_bytes` cuts."""
    record = read_record("cut_ours_n4_vr_lmb0.16-20.48")
    heads = ["most bytes", "cut files", "mean bytes", "top-1", "top-5"]
    rows = [
        [
            f"{one['max_bytes']}",
            f"{one['cut']:,} of {record['images']:,}",
            f"{one['bytes']['mean']:.0f}",
            f"{one['top1']['share']:.1%}",
            f"{one['top5']['share']:.1%}",
        ]
        for one in record["points"]
    ]
    return markdown(heads, rows, align="r")


def _records() -> str:
    """Every kept record: its benchmark, machine and commit."""
    rows = []
    for path in sorted(RESULTS.rglob("*.json")):
        name = path.relative_to(RESULTS).with_suffix("").as_posix()
        record = read_record(name)
        processor = record.get("machine", {}).get("processor", "-")
        rows.append(
            [
                f"[{name}]({name}.json)",
                record.get("benchmark", name),
                processor,
                record.get("commit", "-"),
            ]
        )
    return markdown(["record", "benchmark", "processor", "commit"], rows, align="llll")


def _latency() -> str:
    record = read_record("latency")
    return latency.table(record["rows"], record["peak_multiply_adds"])


# The name between the markers -> the table.
TABLES: dict[str, Callable[[], str]] = {
    "headline": _headline,
    "records": _records,
    "general": _general,
    "variable": _variable,
    "budget-levels": lambda: budgets.levels_table(read_record("budgets")),
    "budgets": lambda: budgets.most_table(read_record("budgets")),
    "cut": _cut,
    "latency": _latency,
    "latency-files": lambda: latency_files.file_table(read_record("latency")["rows"]),
    "coder": lambda: coder.text(read_record("coder")["results"]),
    "serving": lambda: serving_report.table(read_record("serving")),
    "serving-summary": lambda: "".join(
        f"- {line}\n" for line in serving_report.summary(read_record("serving"))
    ),
    "folders": lambda: folders.table(read_record("folders")["rows"]),
    "jpeg": lambda: jpeg.text(read_record("jpeg")),
    "fast-jpeg-time": lambda: jpeg.fast_jpeg_times(read_record("jpeg")),
    "fast-jpeg-accuracy": lambda: jpeg.fast_jpeg_accuracy(read_record("jpeg")),
    "breakeven": lambda: breakeven.parts_table(read_record("breakeven")),
    "networks": lambda: breakeven.networks_table(read_record("breakeven")),
    "contexts": lambda: contexts.table(read_record("contexts")["results"]),
    "kernels": lambda: kernels.table(read_record("kernels")["rows"]),
    "edges": lambda: edges.table(read_record("edges")["rows"]),
    "rate-accuracy": lambda: rate_accuracy.text(read_record("rate_accuracy")),
    "scaling": lambda: scaling.table(read_record("scaling")),
    "scaling-cost": lambda: scaling.cost_table(read_record("scaling")),
}


def rendered(text: str) -> str:
    """A page with its tables as the records give them. Raises PageError."""

    def table(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise PageError(f"no table is called {match[2]!r}: choose one of {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[match[2]]().strip()}\n{match[4]}"

    return _BLOCK.sub(table, text)


def pages() -> list[Path]:
    """README.md, every page of docs/, and the list of records."""
    roots = [PROJECT / name for name in PAGES]
    return [
        page for root in roots for page in (sorted(root.rglob("*.md")) if root.is_dir() else [root])
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    parser = new_parser(__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing, and name the pages that differ from their records",
    )
    args = parser.parse_args(argv)
    status = 0
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = rendered(old)
        if new == old:
            continue
        name = page.relative_to(PROJECT)
        if args.check:
            print(f"{name} differs from its records")
            status = 1
        else:
            write_atomically(page, new.encode())
            print(f"{name} is written")
    return status


if __name__ == "__main__":
    sys.exit(main())
