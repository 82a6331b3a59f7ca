"""The paper's figure: top-1 against the rate, every model beside image codecs.

    python benchmarks/rate_accuracy.py [--json]        # this project's measurements
    python benchmarks/rate_accuracy.py --imagenet      # curves that others publish

Nothing is measured here. From the records in results/ (--results DIR for others), which `python
-m training.evaluate` and `benchmarks/codecs.py` wrote, a table and a figure are made:
results/rate_accuracy.json and .png (with --imagenet, rate_accuracy_imagenet.*).

A curve's bytes at a top-1, and its top-1 at a rate, are interpolated on its Pareto front,
linearly over the logarithm of the rate (curves.py). BD-rate is the mean distance between two
curves' logarithms of the rate, over the top-1 that both reach (G. Bjøntegaard, VCEG-M33, 2001),
by the package of that name with PCHIP interpolation.

A model of more classes than the images have is asked which of theirs it is, as the others are. One
with another teacher than the codecs' is shown with that teacher's top-1, and not compared in bytes.
The records of an earlier teacher, its codecs among them, lie in a folder of their own in results/.
They have a table of their own, and their models stand in the figure with that teacher's top-1.

Always holds: nothing is extrapolated. In the table a dash means out of range, and a "≤" an upper
bound: all of the curve lies above that top-1, so its cheapest point's bytes are enough.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import (
    RESULTS,
    add_output_options,
    as_json,
    markdown,
    new_parser,
    write_record,
)
from benchmarks.curves import CODECS, Curves, Point, bd_rate, bytes_at, bytes_enough, top1_at
from benchmarks.rate_accuracy_figure import draw
from runtime.codec import strict_json

PUBLISHED = Path(__file__).resolve().parent / "published_results.json"
UNDER_TEACHER = 0.01  # bytes are compared at the teacher's top-1 minus this
AT_BPP = 0.2  # top-1 is compared at this rate
ORDER = (
    "ours_n0",
    "ours_n0_enc",
    "ours_n4",
    "ours_n4_vr",
    "ours_n4_enc",
    "ours_n8",
    "ours_n8_enc",
    "matsubara2022wacv",
    "n4_lite2",
    *CODECS,
)
# What the figures leave out; the tables have all. ours_n8's curve lies on ours_n4's.
NOT_DRAWN = {"ours_n0_enc", "ours_n4_enc", "ours_n8_enc", "ours_n8"}
NOT_DRAWN_OF_IMAGENET = NOT_DRAWN - {"ours_n8"}


class RecordsError(ValueError):
    """There is nothing to draw, or the records do not belong together."""


def _read(file: Path) -> dict[str, Any]:
    try:
        return strict_json.loads(file.read_text())
    except ValueError as error:
        raise RecordsError(f"{file} is no record ({error}): measure it again") from error


def measured(folder: Path) -> Curves:
    """The curves of the records accuracy_*.json in `folder`. Raises RecordsError."""
    points: dict[str, list[Point]] = {}
    own_teachers: dict[str, float] = {}
    images = set()
    teacher: tuple[float, str] | None = None
    for file in sorted(folder.glob("accuracy_*.json")):
        record = _read(file)
        images.add((record["images"], record["as_is"]))
        if record["benchmark"] == "codecs":
            teacher = record["teacher_top1"]["share"], record["teacher"]
        for curve, point in _points(record):
            points.setdefault(curve, []).append(point)
            for one in (record, *record.get("points", ())):
                if "teacher_top1_among" in one:
                    own_teachers[curve] = one["teacher_top1_among"]["share"]
    if teacher is None:
        raise RecordsError(
            f"no accuracy_codecs.json in {folder}: make it with benchmarks/codecs.py"
        )
    if len(images) > 1:
        raise RecordsError(
            f"the records in {folder} are of different images ({sorted(images)}): "
            "measure them again on the same"
        )
    return Curves(_in_order(points), *teacher, images.pop()[0], own_teachers)


def _points(record: dict[str, Any]) -> Iterator[tuple[str, Point]]:
    """(curve, point) of each operating point in a record of accuracy.py or codecs.py."""
    if record["benchmark"] == "codecs":
        rows = [(one["codec"], f"quality {one['quality']}", one) for one in record["points"]]
    elif "points" in record:  # of a variable-rate bundle; its byte budgets are on the same curve
        levels = [one for one in record["points"] if "level" in one]
        rows = [(record["model"], f"level {one['level']:g}", one) for one in levels]
    else:
        rows = [(record["model"], f"lmb {record['lmb']}", record)]
    for curve, name, one in rows:
        top1 = one.get("top1_among", one["top1"])["share"]
        yield curve, Point(name, one["bpp"]["mean"], one["bytes"]["mean"], top1)


def published() -> Curves:
    """The published curves, of 224x224 images."""
    record = _read(PUBLISHED)
    points = {
        curve: [
            Point(
                f"lmb {one['lmb']}" if "lmb" in one else f"{one['bpp']} bpp",
                one["bpp"],
                one["bpp"] * 224 * 224 / 8,
                one["top1"],
            )
            for one in rows
        ]
        for curve, rows in (record["results"] | record["read_off"]["results"]).items()
    }
    return Curves(_in_order(points), record["teacher"]["top1"], record["teacher"]["name"], 50000)


def _in_order(points: dict[str, list[Point]]) -> dict[str, list[Point]]:
    def place(curve: str) -> tuple[int, str]:
        return (ORDER.index(curve) if curve in ORDER else len(ORDER), curve)

    return {
        curve: sorted(points[curve], key=lambda point: point.bpp)
        for curve in sorted(points, key=place)
    }


def compare(curves: Curves, anchor: str) -> dict[str, Any]:
    """All figures, as the record has them. Raises RecordsError for an anchor without points."""
    if anchor not in curves.points:
        raise RecordsError(
            f"no points of the anchor {anchor}: there are {', '.join(curves.points)}"
        )
    target = curves.teacher - UNDER_TEACHER
    codecs = {curve: bytes_at(curves.points.get(curve, []), target) for curve in CODECS}
    reaching = [(size, codec) for codec, size in codecs.items() if size]
    size, codec = min(reaching, default=(None, None))

    def row(curve: str, points: list[Point]) -> dict[str, Any]:
        teacher = curves.own_teachers.get(curve)
        needed = enough = None
        if teacher is None:
            needed, enough = bytes_at(points, target), bytes_enough(points, target)
        own = needed or enough
        return {
            "curve": curve,
            "own_teacher_top1": teacher,
            "points": [
                {"name": point.name, "bpp": point.bpp, "bytes": point.bytes, "top1": point.top1}
                for point in points
            ],
            "bytes_at_target": needed,
            "bytes_enough_for_target": enough,
            "share_of_best_codec": round(own / size, 6) if size and own else None,
            "top1_at_0.2_bpp": top1_at(points, AT_BPP),
            "bd_rate": bd_rate(points, curves.points[anchor]),
        }

    return {
        "benchmark": "rate_accuracy",
        "images": curves.images,
        "teacher": curves.teacher_name,
        "teacher_top1": curves.teacher,
        "target_top1": target,
        "best_codec_at_target": size and {"codec": codec, "bytes": size},
        "anchor": anchor,
        "curves": [row(curve, points) for curve, points in curves.points.items()],
    }


def compare_all(folder: Path, anchor: str) -> dict[str, Any]:
    """The record of the records in `folder`, and those of other teachers in folders below it.

    Raises RecordsError for records that do not belong together, and for an anchor without points.
    """
    others = sorted(file.parent for file in folder.glob("*/accuracy_codecs.json"))
    record = compare(measured(folder), anchor)
    found = [compare(measured(other), anchor) for other in others]
    for other, one in zip(others, found, strict=True):
        if one["images"] != record["images"]:
            raise RecordsError(
                f"the records in {other} are of {one['images']} images, and those in {folder} of "
                f"{record['images']}: measure them again on the same"
            )
    named = [one | {"records": other.name} for other, one in zip(others, found, strict=True)]
    return record | {"other_teachers": named}


def table(record: dict[str, Any]) -> str:
    """The curves of one teacher as a Markdown table."""
    heads = ["curve", "points: top-1 at bytes", f"bytes at {record['target_top1']:.2%}"]
    heads += ["of the best codec's", f"top-1 at {AT_BPP} bpp"]
    heads += [f"BD-rate against {record['anchor']}"]
    return markdown(heads, [_cells(curve) for curve in record["curves"]], align="ll")


def _cells(curve: dict[str, Any]) -> list[str]:
    def show(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    needed, enough = curve["bytes_at_target"], curve["bytes_enough_for_target"]
    bound = "≤ " if needed is None and enough is not None else ""
    teacher = curve["own_teacher_top1"]
    return [
        curve["curve"] + (f" (its teacher: {teacher:.1%})" if teacher else ""),
        ", ".join(f"{one['top1']:.1%} at {one['bytes']:.0f}" for one in curve["points"]),
        bound + show(enough if needed is None else needed, ".0f"),
        bound + show(curve["share_of_best_codec"], ".0%"),
        show(curve["top1_at_0.2_bpp"], ".1%"),
        show(curve["bd_rate"], "+.0%"),
    ]


def text(record: dict[str, Any]) -> str:
    """The table of each teacher, under a line about it."""
    return "\n".join(
        f"Teacher {one['teacher']}: top-1 {one['teacher_top1']:.2%} of {one['images']:,} images"
        + (f" (records in {one['records']}/)" if "records" in one else "")
        + f".\n\n{table(one)}"
        for one in (record, *record.get("other_teachers", ()))
    )


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results"
    )
    parser.add_argument("--imagenet", action="store_true", help="the published curves, on ImageNet")
    parser.add_argument(
        "--anchor",
        metavar="CURVE",
        help="what BD-rate compares with (default: AVIF; ours_n0 with --imagenet)",
    )
    parser.add_argument("--smoke", action="store_true", help="compute and print, keep nothing")
    add_output_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    args = _parser().parse_args(argv)
    if args.imagenet:
        name, anchor = "rate_accuracy_imagenet", "ours_n0"
        title, not_drawn = "ImageNet, as published", NOT_DRAWN_OF_IMAGENET
    else:
        name, anchor, not_drawn = "rate_accuracy", "AVIF", NOT_DRAWN
        title = ""
    try:
        anchor = args.anchor or anchor
        if args.imagenet:
            record = compare(published(), anchor)
        else:
            record = compare_all(args.results, anchor)
        if not args.smoke:
            title = title or f"{record['images']:,} validation images"
            draw(record, args.results / f"{name}.png", title, not_drawn)
            write_record(args.results / f"{name}.json", record)
    except (RecordsError, KeyError, ValueError, OSError) as error:
        print(f"rate_accuracy: {error}", file=sys.stderr)
        return 1
    print(as_json(record) if args.json else text(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
