"""The paper's figure: top-1 against bits, every model beside what users do today.

    python benchmarks/rate_accuracy.py [--json]        # this project's measurements
    python benchmarks/rate_accuracy.py --imagenet      # the curves that the paper's authors publish

Nothing is measured here. The records in results/ (--results DIR for others) are read, which
`python -m training.evaluate` and `benchmarks/codecs.py` wrote, and a figure and a table are made of
them: results/rate_accuracy.png and .json (with --imagenet, rate_accuracy_imagenet.*).

A curve's bytes at a top-1, and its top-1 at a number of bits, lie on straight lines between
neighbouring points of its Pareto front over the logarithm of the rate. BD-rate is the mean distance
between two curves' logarithms of the rate, over the top-1 that both reach (G. Bjøntegaard, VCEG-M33,
2001), by the package of that name with PCHIP interpolation.

Always holds: nothing is extrapolated. Where a curve does not reach, or two do not overlap, the
figure is absent, and the table shows a dash. A curve that lies above a top-1 as a whole needs at most
its cheapest point's bytes: the table shows this bound, with a "≤". Readings are rounded, to hundredths
of a byte and millionths of a share, and so the same on every processor, whose logarithms differ in
their last bits.
"""

import argparse
import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from runtime import __version__
from runtime.codec import strict_json

RESULTS = Path(__file__).resolve().parent / "results"
PUBLISHED = Path(__file__).resolve().parent / "published_results.json"
UNDER_TEACHER = 0.01  # bytes are compared at the teacher's top-1 less so much
AT_BPP = 0.2  # top-1 is compared at so many bits
ORDER = (
    "ours_n0",
    "ours_n0_enc",
    "ours_n4",
    "ours_n4_enc",
    "ours_n8",
    "ours_n8_enc",
    "matsubara2022wacv",
    "JPEG",
    "WEBP",
    "AVIF",
)
CODECS = ORDER[-3:]


class RecordsError(ValueError):
    """There is nothing to draw, or the records do not belong together."""


@dataclass(frozen=True)
class Point:
    """One operating point; `name` is what sets the rate: a model's lmb, a codec's quality."""

    name: str
    bpp: float
    bytes: float
    top1: float


@dataclass(frozen=True)
class Curves:
    """What the figure shows: points by curve, in order of their rates, and the teacher's top-1."""

    points: dict[str, list[Point]]
    teacher: float
    teacher_name: str
    images: int


def _read(file: Path) -> dict[str, Any]:
    try:
        return strict_json.loads(file.read_text())
    except ValueError as error:
        raise RecordsError(f"{file} is no record ({error}): measure it again") from error


def measured(folder: Path) -> Curves:
    """The curves of the records accuracy_*.json in `folder`; raises RecordsError."""
    points: dict[str, list[Point]] = {}
    images = set()
    teacher: tuple[float, str] | None = None
    for file in sorted(folder.glob("accuracy_*.json")):
        record = _read(file)
        images.add((record["images"], record["as_is"]))
        if record["benchmark"] == "codecs":
            teacher = record["teacher_top1"]["share"], record["teacher"]
            rows = [
                (point["codec"], f"quality {point['quality']}", point) for point in record["points"]
            ]
        else:
            rows = [(record["model"], f"lmb {record['lmb']}", record)]
        for curve, name, one in rows:
            points.setdefault(curve, []).append(
                Point(name, one["bpp"]["mean"], one["bytes"]["mean"], one["top1"]["share"])
            )
    if teacher is None:
        raise RecordsError(
            f"no accuracy_codecs.json in {folder}: make it with benchmarks/codecs.py"
        )
    if len(images) > 1:
        raise RecordsError(
            f"the records in {folder} are of different images ({sorted(images)}): measure them again on the same"
        )
    return Curves(_in_order(points), *teacher, images.pop()[0])


def published() -> Curves:
    """The published curves, of 224x224 images."""
    record = _read(PUBLISHED)
    points = {
        model: [
            Point(f"lmb {one['lmb']}", one["bpp"], one["bpp"] * 224 * 224 / 8, one["top1"])
            for one in rows
        ]
        for model, rows in record["results"].items()
    }
    return Curves(_in_order(points), record["teacher"]["top1"], record["teacher"]["name"], 50000)


def _in_order(points: dict[str, list[Point]]) -> dict[str, list[Point]]:
    curves = sorted(
        points, key=lambda curve: (ORDER.index(curve) if curve in ORDER else len(ORDER), curve)
    )
    return {curve: sorted(points[curve], key=lambda point: point.bpp) for curve in curves}


def pareto(points: list[Point]) -> list[Point]:
    """The Pareto front: both coordinates grow strictly."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.bpp, -point.top1)):
        if not front or point.top1 > front[-1].top1:
            front.append(point)
    return front


def bytes_at(points: list[Point], top1: float) -> float | None:
    """Bytes an image that a curve needs for a top-1; None where all its points lie under it, or all above."""
    front = pareto(points)
    if not front or not front[0].top1 <= top1 <= front[-1].top1:
        return None
    return round(
        float(
            np.exp(
                np.interp(
                    top1, [point.top1 for point in front], np.log([point.bytes for point in front])
                )
            )
        ),
        2,
    )


def bytes_enough(points: list[Point], top1: float) -> float | None:
    """Bytes of the cheapest point that reaches a top-1: what a curve needs at most; None where none does."""
    return min((point.bytes for point in points if point.top1 >= top1), default=None)


def top1_at(points: list[Point], bpp: float) -> float | None:
    """A curve's top-1 at a rate; None beyond its ends."""
    front = pareto(points)
    if not front or not front[0].bpp <= bpp <= front[-1].bpp:
        return None
    return round(
        float(
            np.interp(
                np.log(bpp), np.log([point.bpp for point in front]), [point.top1 for point in front]
            )
        ),
        6,
    )


def bd_rate(points: list[Point], anchor: list[Point]) -> float | None:
    """Mean change of the rate against the anchor at equal top-1, as a share; None where there is no such figure."""
    import bjontegaard

    ours, theirs = pareto(points), pareto(anchor)
    if min(len(ours), len(theirs)) < 2 or min(ours[-1].top1, theirs[-1].top1) <= max(
        ours[0].top1, theirs[0].top1
    ):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # a small overlap; the table says of how much top-1 it speaks
        percent = bjontegaard.bd_rate(
            [point.bpp for point in theirs],
            [point.top1 for point in theirs],
            [point.bpp for point in ours],
            [point.top1 for point in ours],
            method="pchip",
            require_matching_points=False,
        )
    return round(float(percent) / 100, 6) if np.isfinite(percent) else None


def compare(curves: Curves, anchor: str) -> dict[str, Any]:
    """All figures, as the JSON has them; raises RecordsError for an anchor without points."""
    if anchor not in curves.points:
        raise RecordsError(
            f"no points of the anchor {anchor}: there are {', '.join(curves.points)}"
        )
    target = curves.teacher - UNDER_TEACHER
    needed = {curve: bytes_at(points, target) for curve, points in curves.points.items()}
    enough = {curve: bytes_enough(points, target) for curve, points in curves.points.items()}
    best = min(
        ((size, curve) for curve, size in needed.items() if size and curve in CODECS), default=None
    )
    return {
        "benchmark": "rate_accuracy",
        "images": curves.images,
        "teacher": curves.teacher_name,
        "teacher_top1": curves.teacher,
        "target_top1": target,
        "best_codec_at_target": best and {"codec": best[1], "bytes": best[0]},
        "anchor": anchor,
        "curves": [
            {
                "curve": curve,
                "points": [
                    {"name": point.name, "bpp": point.bpp, "bytes": point.bytes, "top1": point.top1}
                    for point in points
                ],
                "bytes_at_target": needed[curve],
                "bytes_enough_for_target": enough[curve],
                "share_of_best_codec": round(size / best[0], 6)
                if best and (size := needed[curve] or enough[curve])
                else None,
                "top1_at_0.2_bpp": top1_at(points, AT_BPP),
                "bd_rate": bd_rate(points, curves.points[anchor]),
            }
            for curve, points in curves.points.items()
        ],
    }


def text(result: dict[str, Any]) -> str:
    def show(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    heads = [
        "curve",
        "points: top-1 at bytes",
        f"bytes at {result['target_top1']:.2%}",
        "of the best codec's",
    ]
    heads += [f"top-1 at {AT_BPP} bpp", f"BD-rate against {result['anchor']}"]
    lines = [
        f"teacher {result['teacher']}: top-1 {result['teacher_top1']:.2%}; {result['images']} images",
        "",
        f"| {' | '.join(heads)} |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for curve in result["curves"]:
        points = ", ".join(
            f"{point['top1']:.1%} at {point['bytes']:.0f}" for point in curve["points"]
        )
        exact, enough = curve["bytes_at_target"], curve["bytes_enough_for_target"]
        bound = "≤ " if exact is None and enough is not None else ""
        size, share = (
            show(enough if exact is None else exact, ".0f"),
            show(curve["share_of_best_codec"], ".0%"),
        )
        lines.append(
            f"| {curve['curve']} | {points} | {bound}{size} | {bound}{share} | "
            f"{show(curve['top1_at_0.2_bpp'], '.1%')} | {show(curve['bd_rate'], '+.0%')} |"
        )
    return "\n".join(lines)


def draw(curves: Curves, file: Path, title: str) -> None:
    """The figure, as a PNG: all points, and a line through each curve's Pareto front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, (curve, points) in enumerate(curves.points.items()):
        marker, size, line = ("x", 6, ":") if curve in CODECS else ("o", 4, "-")
        front = pareto(points)
        for some, style, label in ((points, "", None), (front, line, curve)):
            at = [point.bpp for point in some], [100 * point.top1 for point in some]
            axes.plot(
                *at,
                color=f"C{index % 10}",
                marker=marker,
                markersize=size,
                linestyle=style,
                label=label,
            )
    axes.axhline(
        100 * curves.teacher,
        color="black",
        linewidth=1,
        linestyle="--",
        label="teacher, no compression",
    )
    # A codec at its lowest quality is far below; what is worth using lies near the teacher.
    axes.set(xscale="log", xlabel="bits per pixel", ylabel="top-1, %", title=title)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 100 * curves.teacher - 30))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize="small")
    figure.savefig(file, format="png", dpi=110)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results"
    )
    parser.add_argument("--imagenet", action="store_true", help="the published curves, on ImageNet")
    parser.add_argument(
        "--anchor",
        metavar="CURVE",
        help="what BD-rate compares with (default: matsubara2022wacv; ours_n0 with --imagenet)",
    )
    parser.add_argument("--smoke", action="store_true", help="compute and print, keep nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        curves = published() if args.imagenet else measured(args.results)
        # The authors publish nothing of matsubara2022wacv.
        result = compare(
            curves, args.anchor or ("ours_n0" if args.imagenet else "matsubara2022wacv")
        )
        if not args.smoke:
            name = "rate_accuracy_imagenet" if args.imagenet else "rate_accuracy"
            draw(
                curves,
                args.results / f"{name}.png",
                "ImageNet, as published" if args.imagenet else f"{curves.images} validation images",
            )
            (args.results / f"{name}.json").write_text(
                json.dumps(result, indent=1, allow_nan=False) + "\n"
            )
    except (RecordsError, KeyError, ValueError, OSError) as error:
        print(f"rate_accuracy: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1, allow_nan=False) if args.json else text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
