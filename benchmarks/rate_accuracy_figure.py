"""rate_accuracy.py's figure: the Pareto front of each curve, and its name in a legend.

Points that are not on a front are left out; the table has them. Models with another teacher have
its top-1 at their name, thin lines and empty markers.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from benchmarks.curves import CODECS, Point, pareto

DEFAULT, VARIABLE = "ours_n4", "ours_n4_vr"
# Okabe and Ito's colours, which colour-blind readers can tell apart; the markers differ as well.
_STYLES: dict[str, dict[str, Any]] = {
    DEFAULT: {"color": "#0072b2", "marker": "o", "linewidth": 3, "markersize": 7},
    "ours_n8": {"color": "#e69f00", "marker": "s"},
    "ours_n0": {"color": "#009e73", "marker": "^"},
    "matsubara2022wacv": {"color": "#777777", "marker": "v"},
    "n4_lite2": {"color": "#882255", "marker": "p"},
    "JPEG": {"color": "#000000", "marker": "x", "linestyle": "--"},
    "WEBP": {"color": "#cc79a7", "marker": "D", "linestyle": "--"},
    "AVIF": {"color": "#d55e00", "marker": "P", "linestyle": "--"},
}
_OTHER: dict[str, Any] = {"color": "#56b4e9", "marker": "*"}
_OF_ANOTHER_TEACHER: dict[str, Any] = {
    "linewidth": 0.9,
    "markersize": 6,
    "markerfacecolor": "white",
}
_NAMES = {DEFAULT: f"{DEFAULT} (default)", "WEBP": "WebP"}


def draw(record: dict[str, Any], file: Path, title: str, not_drawn: Collection[str]) -> None:
    """The figure of rate_accuracy.py's record, without some curves, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set_xscale("log")
    teacher = 100 * record["teacher_top1"]
    lowest = highest = teacher
    for name, points, own_teacher in drawn(record, not_drawn):
        front = pareto([Point(**point) for point in points])
        sizes, top1 = [point.bytes for point in front], [100 * point.top1 for point in front]
        style = {"linewidth": 1.8, "markersize": 6, **_STYLES.get(name, _OTHER)}
        label = _NAMES.get(name, name)
        if own_teacher:
            style |= _OF_ANOTHER_TEACHER
            label = f"{name} (its teacher: {own_teacher:.1%})"
        axes.plot(sizes, top1, label=label, **style)
        lowest, highest = min(lowest, top1[0]), max(highest, top1[-1])
    # A model at a far too low rate would press all others together at the top.
    axes.set_ylim(max(lowest, teacher - 25) - 4, highest + 1.5)
    text = f"teacher, no compression: {teacher:.1f}%"
    axes.axhline(teacher, color="black", linewidth=1, linestyle=":", label=text)
    _compare_bytes(axes, record)
    _label(axes, record, title)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(file, format="png", dpi=110)


def drawn(
    record: dict[str, Any], not_drawn: Collection[str]
) -> Iterator[tuple[str, list[dict[str, Any]], float | None]]:
    """Name, points and own teacher's top-1 of each curve; of other teachers the models alone."""
    for one in record["curves"]:
        if one["curve"] not in not_drawn:
            yield one["curve"], one["points"], one["own_teacher_top1"]
    for other in record.get("other_teachers", ()):
        for one in other["curves"]:
            if one["curve"] not in {*not_drawn, *CODECS}:
                yield one["curve"], one["points"], other["teacher_top1"]


def compared_in_bytes(record: dict[str, Any]) -> tuple[str, float] | None:
    """The model that is compared with the best codec, and its bytes at the target's top-1.

    It is the default, or the variable-rate model if the default has no points around the target.
    """
    needed = {curve["curve"]: curve["bytes_at_target"] for curve in record["curves"]}
    return next(((name, needed[name]) for name in (DEFAULT, VARIABLE) if needed.get(name)), None)


def _compare_bytes(axes: Any, record: dict[str, Any]) -> None:
    """Bytes of a model and of the best codec for the same top-1, along the lower edge."""
    codec, found = record["best_codec_at_target"], compared_in_bytes(record)
    if not codec or not found:
        return
    model, ours = found
    target, low = 100 * record["target_top1"], axes.get_ylim()[0] + 1.2
    for end in (ours, codec["bytes"]):
        axes.plot([end, end], [low, target], color="#444444", linewidth=1, linestyle=":")
    arrow = {"arrowstyle": "<->", "color": "#444444"}
    axes.annotate("", (ours, low), (codec["bytes"], low), arrowprops=arrow)
    name, size = codec["codec"], codec["bytes"]
    text = f"{target:.1f} %: {model} {ours:,.0f} bytes, {name} {size / ours:.1f} times as many"
    middle = (ours * codec["bytes"]) ** 0.5
    axes.annotate(text, (middle, low), (0, 3), textcoords="offset points", ha="center", va="bottom")


def _label(axes: Any, record: dict[str, Any], title: str) -> None:
    """Bytes below, bits per pixel above; the images of a record have one size."""
    point = record["curves"][0]["points"][0]
    pixels = 8 * point["bytes"] / point["bpp"]
    axes.set(xlabel="bytes an image", ylabel="top-1, %")
    axes.set_title(title, loc="left", fontsize="medium")
    ticks = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)
    low, high = axes.get_xlim()
    axes.set_xticks([size for size in ticks if low <= size <= high])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(_no_ticks())
    above = axes.secondary_xaxis(
        "top", functions=(lambda size: 8 * size / pixels, lambda bpp: bpp * pixels / 8)
    )
    above.set_xlabel("bits per pixel")
    above.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5, 1, 2])
    above.xaxis.set_major_formatter("{x:g}")
    above.xaxis.set_minor_locator(_no_ticks())
    axes.grid(alpha=0.2)
    axes.spines["right"].set_visible(False)


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
