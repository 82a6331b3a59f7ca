"""The arithmetic of breakeven.py: the time of each way on each network, and when to split.

Nothing is measured here. Networks are assumptions, each with its source beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

SPLIT, ALONE = "split", "all on the device"


@dataclass(frozen=True)
class Way:
    """A way from a picture to its class.

    Milliseconds on the device (as fast as this machine) and in the cloud, bytes sent between them,
    and top-1.
    """

    name: str
    device_ms: float
    cloud_ms: float
    bytes: float
    top1: float

    def fixed_ms(self, factor: float) -> float:
        """Time without the network, on a device `factor` times slower than this machine."""
        return factor * self.device_ms + self.cloud_ms

    def total_ms(self, uplink_kbps: float, rtt_ms: float, factor: float) -> float:
        """Time of an image; 1 kbps is 1,000 bits a second. No round trip if nothing is sent."""
        network = rtt_ms + 8 * self.bytes / uplink_kbps if self.bytes else 0.0
        return self.fixed_ms(factor) + network


@dataclass(frozen=True)
class Network:
    """An uplink in kilobits a second, a round trip in milliseconds, and where they come from."""

    name: str
    uplink_kbps: float
    rtt_ms: float
    assumption: str


NETWORKS = (
    Network(
        "LoRa",
        5.47,
        1000,
        "LoRaWAN, EU868 data rate 5 (SF7); answer in the first receive window, after 1 s; "
        "several messages; duty cycle ignored",
    ),
    Network("NB-IoT", 20, 1600, "3GPP release 13, one tone of 15 kHz; 1.6 s, good coverage"),
    Network(
        "2G GPRS",
        20,
        650,
        "a slot and a half of coding scheme 2, 13.4 kbit/s each; 650 ms, a common preset of load "
        "tests",
    ),
    Network("2G EDGE", 200, 840, "WebPageTest's profile Mobile EDGE"),
    Network(
        "LTE-M", 375, 150, "3GPP release 13, half duplex, the peak rate; 150 ms, good coverage"
    ),
    Network("3G", 768, 300, "WebPageTest's profile Mobile 3G"),
    Network("LTE", 12_000, 70, "WebPageTest's profile Mobile LTE"),
    Network("5G", 50_000, 25, "a usual mid-band cell, and a server in the same region"),
    Network("Wi-Fi", 100_000, 10, "a good home or factory network, and a server in the same city"),
)


def faster_below(ours: Way, theirs: Way, factor: float) -> float:
    """The uplink, in kilobits a second, below which `ours` is faster than `theirs`.

    Infinite if it always is, 0 if it never is. `ours` sends fewer bytes. The round trip does not
    matter, since both make one.
    """
    behind = ours.fixed_ms(factor) - theirs.fixed_ms(factor)
    if behind <= 0:
        return math.inf if ours.bytes <= theirs.bytes else 0.0
    return max(0.0, 8 * (theirs.bytes - ours.bytes) / behind)


def network_budget_ms(ours: Way, alone: Way, factor: float) -> float:
    """Time that `ours` has for the network to be faster than `alone`; never if negative."""
    return alone.fixed_ms(factor) - ours.fixed_ms(factor)


def fastest(ways: Sequence[Way], network: Network, factor: float) -> Way:
    """The fastest way on a network; the first of equals."""
    return min(ways, key=lambda way: way.total_ms(network.uplink_kbps, network.rtt_ms, factor))


def advice(ways: Sequence[Way], factor: float) -> dict[str, Any]:
    """When to split, on a device `factor` times slower: both limits, and a sentence."""
    by_name = {way.name: way for way in ways}
    split, alone = by_name[SPLIT], by_name[ALONE]
    codecs = [way for way in ways if way.name not in (SPLIT, ALONE)]
    budget = network_budget_ms(split, alone, factor)
    below = {way.name: faster_below(split, way, factor) for way in codecs}
    return {
        "device_factor": factor,
        "network_budget_ms": budget,
        "faster_than_codec_below_kbps": {
            name: None if value == math.inf else value for name, value in below.items()
        },
        "text": _advice_text(split, alone, codecs, factor),
    }


def _advice_text(split: Way, alone: Way, codecs: list[Way], factor: float) -> str:
    device = (
        "On a device as fast as this machine"
        if factor == 1
        else f"On a device {factor:g} times slower than this machine"
    )
    budget = network_budget_ms(split, alone, factor)
    if budget <= 0:
        return (
            f"{device}, run the whole network there ({alone.fixed_ms(factor):.0f} ms): split "
            f"computes for {split.fixed_ms(factor):.0f} ms, before anything is sent."
        )
    text = (
        f"{device}, split if round trip and sending {split.bytes:.0f} bytes take less than "
        f"{budget:.0f} ms together; otherwise run the whole network on the device"
    )
    rival = min(codecs, key=lambda way: faster_below(split, way, factor))
    limit = faster_below(split, rival, factor)
    if limit == math.inf:
        return f"{text}. Sending a picture is slower on any uplink."
    return (
        f"{text}. Above {rate(limit)}, {rival.name} is faster, with "
        f"{rival.bytes / split.bytes:.1f} times the bytes "
        f"(its top-1 is {rival.top1:.1%}, split's {split.top1:.1%})."
    )


def rate(kbps: float) -> str:
    """`12.0 Mbit/s` or `200 kbit/s`."""
    return f"{kbps / 1000:.1f} Mbit/s" if kbps >= 1000 else f"{kbps:.0f} kbit/s"


def with_cloud_factor(ways: Sequence[Way], cloud_factor: float) -> list[Way]:
    """The ways in a cloud that takes `cloud_factor` times as long as this machine."""
    return [replace(way, cloud_ms=cloud_factor * way.cloud_ms) for way in ways]


def report(
    measured: Sequence[Way],
    networks: Sequence[Network],
    factors: Sequence[float],
    cloud_factor: float = 1.0,
) -> dict[str, Any]:
    """What follows from the measured ways, as the record has it; "ways" are as measured."""
    ways = with_cloud_factor(measured, cloud_factor)

    def row(network: Network, factor: float) -> dict[str, Any]:
        uplink, rtt = network.uplink_kbps, network.rtt_ms
        return {
            "device_factor": factor,
            "ms": {way.name: way.total_ms(uplink, rtt, factor) for way in ways},
            "fastest": fastest(ways, network, factor).name,
        }

    return {
        "cloud_factor": cloud_factor,
        "ways": [asdict(way) for way in measured],
        "networks": [
            {**asdict(network), "device_factors": [row(network, factor) for factor in factors]}
            for network in networks
        ],
        "advice": [advice(ways, factor) for factor in factors],
    }
