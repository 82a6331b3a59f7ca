"""breakeven.py's figure.

The upper row has the fastest way on every network, the lower row all ways on the named networks.
There is a column for each device factor.
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.breakeven_model import ALONE, SPLIT, Network, Way, with_cloud_factor

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = {
    SPLIT: "#0072b2",
    "JPEG": "#e69f00",
    "WEBP": "#009e73",
    "AVIF": "#cc79a7",
    ALONE: "#7f7f7f",
}
_UPLINKS = {1: "1k", 10: "10k", 100: "100k", 1e3: "1M", 1e4: "10M", 1e5: "100M", 1e6: "1G"}
_ROUND_TRIPS = {1: "1 ms", 10: "10 ms", 100: "100 ms", 1000: "1 s", 10_000: "10 s"}
_TIMES = {
    10: "10 ms",
    30: "30 ms",
    100: "100 ms",
    300: "300 ms",
    1000: "1 s",
    3000: "3 s",
    10_000: "10 s",
    30_000: "30 s",
}


def draw(record: dict[str, Any], file: Path) -> None:
    """The figure, as a PNG."""
    from matplotlib.figure import Figure

    ways = with_cloud_factor([Way(**one) for one in record["ways"]], record["cloud_factor"])
    keys = ("name", "uplink_kbps", "rtt_ms", "assumption")
    networks = [Network(*(one[key] for key in keys)) for one in record["networks"]]
    factors = [entry["device_factor"] for entry in record["advice"]]
    figure = Figure(figsize=(4.6 * len(factors), 8.4), layout="constrained")
    axes = figure.subplots(2, len(factors), squeeze=False, sharex="row", sharey="row")
    for factor, above, below in zip(factors, *axes, strict=True):
        device = "this machine" if factor == 1 else f"{factor:g} times slower"
        _draw_plane(above, ways, networks, factor)
        above.set_title(f"fastest way; device: {device}")
        _draw_networks(below, ways, networks, factor)
        below.set_title(f"time an image; device: {device}")
    _label(axes, networks)
    figure.legend(
        *axes[1][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(ways),
        fontsize="small",
    )
    figure.suptitle(_title(record), fontsize="medium")
    figure.savefig(file, format="png", dpi=110)


def _draw_plane(axes: Any, ways: list[Way], networks: list[Network], factor: float) -> None:
    """The fastest way at each uplink and round trip, and the networks as points."""
    from matplotlib.colors import ListedColormap

    uplinks: Any = np.logspace(0, 6, 500)[None]
    trips: Any = np.logspace(0, 4, 400)[:, None]
    shape = trips.size, uplinks.size
    times = [np.broadcast_to(way.total_ms(uplinks, trips, factor), shape) for way in ways]
    axes.pcolormesh(
        uplinks[0],
        trips[:, 0],
        np.argmin(times, 0),
        cmap=ListedColormap([COLOURS[way.name] for way in ways]),
        vmin=0,
        vmax=len(ways) - 1,
        alpha=0.35,
        rasterized=True,
    )
    axes.set(xscale="log", yscale="log", xlabel="uplink, bit/s")
    for network in networks:
        at = network.uplink_kbps, network.rtt_ms
        axes.plot(*at, "ko", markersize=3)
        # To the left of the point where there is no room to its right.
        side, offset = ("left", 4) if network.uplink_kbps < 3e4 else ("right", -4)
        place = {"xytext": (offset, 3), "textcoords": "offset points", "ha": side}
        axes.annotate(network.name, at, fontsize=7, **place)


def _draw_networks(axes: Any, ways: list[Way], networks: list[Network], factor: float) -> None:
    """The time of every way on each network."""
    for way in ways:
        values = [way.total_ms(network.uplink_kbps, network.rtt_ms, factor) for network in networks]
        axes.plot(
            values,
            range(len(networks)),
            {SPLIT: "o", ALONE: "D"}.get(way.name, "x"),
            color=COLOURS[way.name],
            label=f"{way.name}: {way.bytes:,.0f} bytes, top-1 {way.top1:.1%}",
            markersize=6,
        )
    axes.set_xscale("log")
    axes.grid(alpha=0.3, which="both")


def _label(axes: Any, networks: list[Network]) -> None:
    """Ticks with units; columns of a row share them."""
    above, below = axes[0][0], axes[1][0]
    above.set_xticks(list(_UPLINKS), list(_UPLINKS.values()))
    above.set_yticks(list(_ROUND_TRIPS), list(_ROUND_TRIPS.values()))
    above.set_ylabel("round trip")
    low, high = below.get_xlim()
    shown = {ms: name for ms, name in _TIMES.items() if low <= ms <= high}
    for lower in axes[1]:
        lower.set_xticks(list(shown), list(shown.values()))
        lower.xaxis.set_minor_formatter("")
    below.set_yticks(range(len(networks)), [network.name for network in networks])
    below.invert_yaxis()


def _title(record: dict[str, Any]) -> str:
    machine, factor = record["machine"], record["cloud_factor"]
    cloud = "" if factor == 1 else f"; a cloud {1 / factor:g} times faster"
    return (
        f"{record['model']} ({record['precision']}), JPEG, WebP and AVIF at its top-1, and the "
        f"whole teacher on the device; {machine['processor']}, {machine['threads']} threads{cloud}"
    )
