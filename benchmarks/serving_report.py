"""What serving.py's record says, as tables and a figure."""

from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.common import markdown

FP32, INT8, REFERENCE = "cloud-serve", "cloud-serve, int8", "reference"
SERVICES = (FP32, INT8, REFERENCE)
# Okabe and Ito's, which colour-blind readers can tell apart; the markers differ as well.
_STYLES = {
    FP32: {"color": "#0072b2", "marker": "o"},
    INT8: {"color": "#009e73", "marker": "s"},
    REFERENCE: {"color": "#d55e00", "marker": "^"},
}
_NAMES = {FP32: "cloud-serve, float32", INT8: "cloud-serve, int8", REFERENCE: "reference"}


def table(record: dict[str, Any]) -> str:
    """The loads as a Markdown table."""
    heads = ["service", "load", "images/s", "correct/s", "of capacity", "p50 ms", "p95", "p99"]
    heads += ["refused", "refusal p50 ms", "p99"]
    rows = [
        [name, *_load_cells(row)]
        for name in SERVICES
        for row in record.get(name, {}).get("loads", ())
    ]
    return markdown(heads, rows)


def _load_cells(row: dict[str, Any]) -> list[str]:
    refused = sum(count for code, count in row["answers"].items() if code != "200")
    correct, refusal = row["right_ms"] or {}, row["refused_ms"]
    return [
        f"{row['load']:g}",
        f"{row['rate']:.1f}",
        f"{row['goodput']:.1f}",
        f"{row['goodput_of_capacity']:.0%}",
        *(f"{correct.get(key, float('nan')):.0f}" for key in ("p50", "p95", "p99")),
        f"{refused / row['sent']:.0%}",
        *(f"{refusal[key]:.1f}" if refusal else "-" for key in ("p50", "p99")),
    ]


def summary(record: dict[str, Any]) -> list[str]:
    """A sentence for each service's capacity, and for the soak."""
    lines = []
    for name in (FP32, INT8):
        if not (service := record.get(name)):
            continue
        share = service["capacity_of_graph"]
        low, high = share["quartile_low"], share["quartile_high"]
        rates = ", ".join(
            f"{rate:.1f}/s at {batch}" for batch, rate in service["graph_images_per_second"].items()
        )
        lines.append(
            f"{name}: capacity {service['capacity']:.1f} images/s, {share['median']:.1%} "
            f"({low:.1%} to {high:.1%}) of the cloud graph alone at its best batch, "
            f"{service['best_batch']} ({service['engine']}: {rates})"
        )
    if reference := record.get(REFERENCE):
        lines.append(f"{REFERENCE}: capacity {reference['capacity']:.1f} images/s")
    if soak := record[FP32].get("soak"):
        memory = soak["memory"]
        answers = ", ".join(f"{count:,} times {code}" for code, count in soak["answers"].items())
        lines.append(
            f"soak of {soak['seconds']:g} s at {soak['load']:g} times capacity: "
            f"{soak['sent']:,} requests ({answers}); memory {memory['first_quarter_mb']:.0f} MB in "
            f"the first quarter, {memory['last_quarter_mb']:.0f} in the last, "
            f"{memory['slope_mb_per_hour']:+.1f} MB an hour over the second half"
        )
    return lines


def where(record: dict[str, Any]) -> str:
    """The record's machine, in words."""
    found = record["machine"]
    return f"{machine.title(found)}, {found['cores']} cores, shared by server and generator"


def draw(record: dict[str, Any], file: Path) -> None:
    """Two panels against load, as a PNG: the slowest answers, and the useful ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained", facecolor="white")
    slowest, useful = figure.subplots(1, 2)
    for name in SERVICES:
        rows = [row for row in record.get(name, {}).get("loads", ()) if row["right_ms"]]
        loads = [row["load"] for row in rows]
        p99 = [row["right_ms"]["p99"] / 1e3 for row in rows]
        # Where two lines lie close together, one has its name above and the other below.
        _draw_line(slowest, name, loads, p99, above=name != INT8)
        _draw_line(useful, name, loads, [row["goodput"] for row in rows], above=name != REFERENCE)
    slowest.set_title("99 % of answers come within", loc="left", fontsize="medium")
    slowest.set_ylabel("seconds from when the request was due")
    useful.set_title("useful answers", loc="left", fontsize="medium")
    useful.set_ylabel("correct and in time, images/s")
    for axes in (slowest, useful):
        axes.set_xlabel("load, as a multiple of the service's capacity")
        axes.set_ylim(0, 1.12 * axes.get_ylim()[1])
        left, right = axes.get_xlim()
        axes.axvspan(1, right, color="#eeeeee", zorder=0)
        axes.set_xlim(left, right)
        overload = {"color": "#555555", "ha": "left", "va": "top", "fontsize": "small"}
        axes.text(1.02, 0.985 * axes.get_ylim()[1], "overload", **overload)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(where(record), fontsize="small", color="#555555")
    figure.savefig(file, format="png", dpi=110)


def _draw_line(axes: Any, name: str, loads: list[float], values: list[float], above: bool) -> None:
    """A service's line, with its name above or below the last point."""
    if not loads:
        return
    style = _STYLES[name]
    axes.plot(loads, values, linewidth=2, **style)
    place = {"xytext": (0, 13), "va": "bottom"} if above else {"xytext": (0, -9), "va": "top"}
    axes.annotate(
        _NAMES[name],
        (loads[-1], values[-1]),
        color=style["color"],
        textcoords="offset points",
        ha="right",
        **place,
    )
