"""breakeven.py: its arithmetic, checked by hand, and a whole run of the smallest size."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import breakeven
from benchmarks.breakeven import text
from benchmarks.breakeven_model import (
    ALONE,
    NETWORKS,
    SPLIT,
    Network,
    Way,
    advice,
    faster_below,
    fastest,
    network_budget_ms,
    report,
)
from benchmarks.breakeven_parts import operating_points
from benchmarks.common import RESULTS

PROJECT = Path(__file__).resolve().parents[2]
WAYS = [
    Way(SPLIT, device_ms=5, cloud_ms=20, bytes=500, top1=0.8),
    Way("JPEG", device_ms=1, cloud_ms=22, bytes=2000, top1=0.8),
    Way(ALONE, device_ms=30, cloud_ms=0, bytes=0, top1=0.82),
]
SPLIT_WAY, JPEG_WAY, ALONE_WAY = WAYS


def test_time_is_device_network_and_cloud() -> None:
    # 10 x 5 ms, a round trip of 100 ms, 4,000 bits at 40 bits a millisecond, 20 ms
    assert SPLIT_WAY.total_ms(uplink_kbps=40, rtt_ms=100, factor=10) == 50 + 100 + 100 + 20
    assert ALONE_WAY.total_ms(uplink_kbps=40, rtt_ms=100, factor=10) == 300, (
        "nothing is sent, nothing is waited for"
    )


def test_at_the_limits_both_ways_take_as_long() -> None:
    for factor in (1, 3, 10):
        uplink = faster_below(SPLIT_WAY, JPEG_WAY, factor)
        for rtt in (0, 500):
            assert SPLIT_WAY.total_ms(uplink, rtt, factor) == pytest.approx(
                JPEG_WAY.total_ms(uplink, rtt, factor)
            )
            assert SPLIT_WAY.total_ms(uplink / 2, rtt, factor) < JPEG_WAY.total_ms(
                uplink / 2, rtt, factor
            )
        budget = network_budget_ms(SPLIT_WAY, ALONE_WAY, factor)
        if budget > 0:
            uplink = 8 * SPLIT_WAY.bytes / (budget / 2)
            assert SPLIT_WAY.total_ms(uplink, budget / 2, factor) == pytest.approx(
                ALONE_WAY.total_ms(uplink, budget / 2, factor)
            )


def test_a_way_that_is_always_or_never_faster() -> None:
    assert faster_below(replace(SPLIT_WAY, device_ms=1), JPEG_WAY, 10) == math.inf, (
        "fewer bytes and less to compute"
    )
    assert faster_below(replace(SPLIT_WAY, bytes=3000), JPEG_WAY, 10) == 0, (
        "more bytes and more to compute"
    )


def test_advice_names_the_limits() -> None:
    slow = advice(WAYS, 10)
    # 300 - (50 + 20); and 12,000 bits less in (50 + 20) - (10 + 22) ms more
    assert (slow["network_budget_ms"], slow["faster_than_codec_below_kbps"]) == (
        230,
        {"JPEG": pytest.approx(12000 / 38)},
    )
    assert "sending 500 bytes take less than 230 ms together" in slow["text"]
    assert (
        "Above 316 kbit/s, JPEG is faster, with 4.0 times the bytes "
        "(its top-1 is 80.0%, split's 80.0%)." in slow["text"]
    )
    assert "run the whole network there (15 ms)" in advice(WAYS, 0.5)["text"]
    always = advice([replace(SPLIT_WAY, device_ms=1), *WAYS[1:]], 10)
    assert always["faster_than_codec_below_kbps"] == {"JPEG": None}
    assert "slower on any uplink" in always["text"]


def test_the_report_follows_from_the_parts() -> None:
    result = report(WAYS, NETWORKS, [1, 10], cloud_factor=0.5)
    assert [entry["device_factor"] for entry in result["advice"]] == [1, 10]
    assert result["ways"][0]["cloud_ms"] == 20, "the parts stay as they were measured"
    for network in result["networks"]:
        for entry in network["device_factors"]:
            assert entry["ms"][entry["fastest"]] == min(entry["ms"].values())
    slowest = result["networks"][0]
    assert slowest["device_factors"][0]["ms"][SPLIT] == pytest.approx(
        5 + 10 + slowest["rtt_ms"] + 4000 / slowest["uplink_kbps"]
    )
    assert f"| {slowest['name']} |" in text(result)
    assert fastest(WAYS, Network("good", 100_000, 1, ""), 10).name == "JPEG"


def test_every_network_says_where_it_comes_from() -> None:
    assert all(network.assumption for network in NETWORKS)
    assert len({network.name for network in NETWORKS}) == len(NETWORKS)


def test_the_kept_figure_is_of_the_kept_parts() -> None:
    kept = json.loads((RESULTS / "breakeven.json").read_text())
    ways = [Way(**way) for way in kept["ways"]]
    again = report(
        ways, NETWORKS, [entry["device_factor"] for entry in kept["advice"]], kept["cloud_factor"]
    )
    assert {key: kept[key] for key in again} == again
    points = operating_points()
    assert {way.name: (way.bytes, way.top1) for way in ways} == {
        SPLIT: (points.bytes, points.top1),
        **{
            codec: (codec_bytes, points.codecs_top1)
            for codec, (_, codec_bytes) in points.codecs.items()
        },
        ALONE: (0, points.teacher_top1),
    }
    assert points.codecs_top1 <= points.top1, "no codec is asked for more than split gives"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "benchmarks" / "breakeven.py"), *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)


def test_one_network_from_kept_parts(tmp_path: Path) -> None:
    parts = tmp_path / "parts.json"
    parts.write_text(json.dumps({"benchmark": "breakeven", **report(WAYS, NETWORKS, [1])}))
    done = run(
        "--parts", str(parts), "--uplink", "40", "--rtt", "100", "--device-factor", "10", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert [
        network["device_factors"][0]["ms"][SPLIT] for network in json.loads(done.stdout)["networks"]
    ] == [270]
    parts.write_text(json.dumps({"benchmark": "latency"}))
    done = run("--parts", str(parts))
    assert (done.returncode, done.stderr) == (
        1,
        f"breakeven: {parts} is a record of latency, not of breakeven\n",
    )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--uplink", "40"], "a network is --uplink and --rtt"),
        (["--uplink", "0", "--rtt", "1"], "argument --uplink: '0' is not a number from 0.001"),
        (["--device-factor", "0"], "argument --device-factor: '0' is not a number from 1e-06"),
        (["--runs", "3"], "argument --runs: '3' is not a whole number from 20"),
        (["--keep", "--smoke"], "--keep is for a whole run"),
    ],
)
def test_wrong_usage(
    arguments: list[str],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["breakeven.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        breakeven.main()
    assert stopped.value.code == 2
    assert why in capsys.readouterr().err


@pytest.mark.slow
def test_all_of_it_in_its_smallest_size() -> None:
    done = run("--smoke", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["class"] == "golf ball"
    assert set(result["parts_ms"]) >= {
        "preprocess",
        "edge",
        "cloud",
        "teacher",
        "JPEG encode",
        "JPEG cloud",
        "WEBP encode",
        "WEBP cloud",
    }
    assert result["runs"] == 3
