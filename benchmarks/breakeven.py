"""When to split: this system beside sending a picture to the cloud, and beside the whole network on the device.

    python benchmarks/breakeven.py [--device-factor F...] [--keep] [--json]      # networks from LoRa to Wi-Fi
    python benchmarks/breakeven.py --uplink KBPS --rtt MS                        # one network, yours
    python benchmarks/breakeven.py --parts benchmarks/results/breakeven.json     # from what was measured before

Time an image, from a decoded picture to its class:

    device x device factor + round trip + 8 x bytes / uplink + cloud x cloud factor

of which the first is all for a network on the device. Device and cloud are measured here, in turn, in one run: resizing,
encoder graph and coder; coder and cloud graph; each codec's encoder, its decoder and the teacher, a whole ResNet-50; the teacher
alone, exported to ONNX here. All graphs run in onnxruntime on the CPU in float32; --precision int8 is of split's two alone. Bytes are
means over the validation images: the model's from its record, a codec's from its curve at the model's top-1, or at one point under
the teacher's if that is less: codecs need not follow the model to where they never come. Networks are assumptions, each with its
source beside it.

Always holds: a timed output is held to the first of its run, feature files decode to the symbols that were encoded, and
the exported teacher gives torch's logits; a benchmark whose output is wrong stops. Bytes are of files alone:
no protocol's headers, and no time to open a connection.
"""

import argparse
import io
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.latency import BenchmarkError, make_bundle, summary
from benchmarks.machine import commit, cores, describe
from benchmarks.rate_accuracy import CODECS, UNDER_TEACHER, RecordsError, bytes_at, measured
from runtime import CloudDecoder, EdgeEncoder, __version__
from runtime.codec import strict_json
from runtime.errors import EdgeCloudError
from runtime.images.preprocess import load_image, preprocess
from runtime.options import number
from runtime.tasks.classification import require_finite

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
MODEL, RECORD, CODECS_RECORD = "ours_n4", "accuracy_ours_n4_lmb1.28.json", "accuracy_codecs.json"
TEACHER = PROJECT / "checkpoints" / "imagenette_resnet50.safetensors"
SPLIT, ALONE = "split", "all on the device"
FACTORS = (1.0, 10.0, 50.0)
MAX_LOGIT_ERROR = 1e-3  # of the exported teacher against torch


@dataclass(frozen=True)
class Way:
    """A way from a picture to its class: milliseconds on device (here) and in the cloud, bytes between them, and its top-1."""

    name: str
    device_ms: float
    cloud_ms: float
    bytes: float
    top1: float

    def fixed_ms(self, factor: float) -> float:
        """What it takes without the network, on a device `factor` times slower than this machine."""
        return factor * self.device_ms + self.cloud_ms

    def total_ms(self, uplink_kbps: float, rtt_ms: float, factor: float) -> float:
        """An image, on a network of so many kilobits (1,000 bits) a second; no round trip where nothing is sent."""
        return self.fixed_ms(factor) + (
            rtt_ms + 8 * self.bytes / uplink_kbps if self.bytes else 0.0
        )


@dataclass(frozen=True)
class Network:
    """An uplink in kilobits a second, a round trip in milliseconds, and where the two come from."""

    name: str
    uplink_kbps: float
    rtt_ms: float
    assumption: str


NETWORKS = (
    Network(
        "LoRa",
        5.47,
        1000,
        "LoRaWAN, EU868 data rate 5 (SF7); answer in the first receive window, after 1 s; several messages; no duty cycle",
    ),
    Network("NB-IoT", 20, 1600, "3GPP release 13, one tone of 15 kHz; 1.6 s, good coverage"),
    Network(
        "2G GPRS",
        20,
        650,
        "a slot and a half of coding scheme 2, 13.4 kbit/s each; 650 ms, a common preset of load tests",
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
    """The uplink in kilobits a second under which `ours`, which sends fewer bytes, is the faster: infinite if always, 0 if never.

    The round trip does not matter, since both take one.
    """
    behind = ours.fixed_ms(factor) - theirs.fixed_ms(factor)
    if behind <= 0:
        return math.inf if ours.bytes <= theirs.bytes else 0.0
    return max(0.0, 8 * (theirs.bytes - ours.bytes) / behind)


def network_budget_ms(ours: Way, alone: Way, factor: float) -> float:
    """How long round trip and bytes may take together for `ours` to be faster than `alone`; negative: never."""
    return alone.fixed_ms(factor) - ours.fixed_ms(factor)


def fastest(ways: list[Way], network: Network, factor: float) -> Way:
    """The first of equals."""
    return min(ways, key=lambda way: way.total_ms(network.uplink_kbps, network.rtt_ms, factor))


def advice(ways: list[Way], factor: float) -> dict[str, Any]:
    """When to split, for a device `factor` times slower than this machine: the two limits, and a sentence."""
    by_name = {way.name: way for way in ways}
    split, alone = by_name[SPLIT], by_name[ALONE]
    codecs = [way for way in ways if way.name not in (SPLIT, ALONE)]
    budget = network_budget_ms(split, alone, factor)
    below = {way.name: faster_below(split, way, factor) for way in codecs}
    device = (
        f"On a device {factor:g} times slower than this machine"
        if factor != 1
        else "On a device as fast as this machine"
    )
    if budget <= 0:
        both = split.fixed_ms(factor)
        text = f"{device}, run all on it, in {alone.fixed_ms(factor):.0f} ms: split computes for {both:.0f} ms at its two ends."
    else:
        text = f"{device}, split where the round trip and {split.bytes:.0f} bytes take less than {budget:.0f} ms together, else run all on it"
        rival = min(codecs, key=lambda way: below[way.name])
        if below[rival.name] == math.inf:
            text += "; sending a picture is slower on any uplink."
        else:
            text += (
                f"; above {rate(below[rival.name])}, {rival.name} is there sooner, with {rival.bytes / split.bytes:.1f} times the bytes "
                f"(its top-1 {rival.top1:.1%}, split's {split.top1:.1%})."
            )
    finite = {name: None if value == math.inf else value for name, value in below.items()}
    return {
        "device_factor": factor,
        "network_budget_ms": budget,
        "faster_than_codec_below_kbps": finite,
        "text": text,
    }


def rate(kbps: float) -> str:
    return f"{kbps / 1000:.1f} Mbit/s" if kbps >= 1000 else f"{kbps:.0f} kbit/s"


def report(
    ways: list[Way], networks: tuple[Network, ...], factors: list[float], cloud_factor: float = 1.0
) -> dict[str, Any]:
    """All that follows from the parts, as the JSON has it; `ways` themselves stay as they were measured."""
    as_measured, ways = ways, [replace(way, cloud_ms=cloud_factor * way.cloud_ms) for way in ways]
    return {
        "cloud_factor": cloud_factor,
        "ways": [asdict(way) for way in as_measured],
        "networks": [
            {
                **asdict(network),
                "device_factors": [
                    {
                        "device_factor": factor,
                        "ms": {
                            way.name: way.total_ms(network.uplink_kbps, network.rtt_ms, factor)
                            for way in ways
                        },
                        "fastest": fastest(ways, network, factor).name,
                    }
                    for factor in factors
                ],
            }
            for network in networks
        ],
        "advice": [advice(ways, factor) for factor in factors],
    }


@dataclass(frozen=True)
class OperatingPoints:
    """Mean bytes and top-1 of the model; quality and bytes of each codec, and the top-1 that they are read at; the teacher's top-1."""

    bytes: float
    top1: float
    codecs: dict[str, tuple[int, float]]
    codecs_top1: float
    teacher_top1: float


def operating_points() -> OperatingPoints:
    """From the records. A codec's quality is the cheapest measured one that reaches the top-1. Raises RecordsError."""
    record = strict_json.loads((RESULTS / RECORD).read_text())
    curves = measured(RESULTS)
    top1 = min(record["top1"]["share"], curves.teacher - UNDER_TEACHER)
    found: dict[str, tuple[int, float]] = {}
    Image.init()
    for codec in CODECS:
        if codec not in Image.SAVE:
            continue
        points = curves.points.get(codec, [])
        size = bytes_at(points, top1)
        if size is None:
            raise RecordsError(
                f"{CODECS_RECORD} has no points of {codec} around a top-1 of {top1:.2%}: measure more qualities"
            )
        at_least = min(
            (point for point in points if point.top1 >= top1), key=lambda point: point.bytes
        )
        found[codec] = int(at_least.name.split()[-1]), size
    return OperatingPoints(
        record["bytes"]["mean"], record["top1"]["share"], found, top1, curves.teacher
    )


Run = Callable[[NDArray[Any]], NDArray[Any]]


def export_teacher(file: Path, threads: int, pixels: NDArray[np.uint8], folder: Path) -> Run:
    """The teacher from pixels uint8 [224, 224, 3] to logits [classes], in onnxruntime; raises BenchmarkError unless it is torch's."""
    import contextlib
    import logging
    import warnings

    import onnxruntime as ort
    import torch

    from training.data import MEAN, STD
    from training.teachers import load_teacher

    class Whole(torch.nn.Module):
        scale: torch.Tensor
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.net = load_teacher(file).backbone.eval()
            mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
            self.register_buffer("scale", 1 / (255 * std))
            self.register_buffer("shift", -mean / std)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.net(pixels.permute(2, 0, 1).unsqueeze(0).float() * self.scale + self.shift)[
                0
            ]

    whole, example = Whole().eval(), torch.tensor(pixels)
    noise = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(noise),
        contextlib.redirect_stderr(noise),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            whole, (example,), dynamo=True, external_data=False, verbose=False
        )
        assert program is not None
        program.save(str(folder / "teacher.onnx"), external_data=False)
        expected = whole(example).numpy()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # as the runtime's engines
    session = ort.InferenceSession(
        str(folder / "teacher.onnx"), options, providers=["CPUExecutionProvider"]
    )
    source = session.get_inputs()[0].name

    def run(values: NDArray[Any]) -> NDArray[Any]:
        return session.run(None, {source: values})[0]

    error = float(np.abs(run(pixels) - expected).max())
    if not error <= MAX_LOGIT_ERROR:
        raise BenchmarkError(
            f"the exported teacher's logits are {error:.2g} from torch's: the installed onnxruntime or torch is not to be trusted"
        )
    return run


def measure(
    image_file: Path, teacher_file: Path, threads: int, runs: int, precision: str = "fp32"
) -> tuple[list[Way], dict[str, Any]]:
    """The ways, with what was measured of their parts; `precision` is of split's two graphs.

    Raises BenchmarkError, RecordsError, the EdgeCloudErrors.
    """
    missing = [name for name in ("torch", "compressai", "onnxscript") if not find_spec(name)]
    if missing:
        raise BenchmarkError(
            f"{', '.join(missing)} is not installed, which export needs: pip install '.[bench]', or use --parts"
        )
    from benchmarks.codecs import SETTINGS

    points = operating_points()
    codecs = points.codecs
    folder = make_bundle(MODEL)
    encoder = EdgeEncoder(folder, threads, provider="cpu", precision=precision)
    decoder = CloudDecoder(folder, threads, provider="cpu", precision=precision)
    picture = load_image(image_file)
    pixels = preprocess(picture)
    symbols = encoder.symbols(pixels[None])[0]
    with tempfile.TemporaryDirectory() as place:
        teacher = export_teacher(teacher_file, threads, pixels, Path(place))

    def codec_encode(codec: str) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, codec, quality=codecs[codec][0], **SETTINGS[codec])
        return file.getvalue()

    def codec_classify(codec: str) -> int:
        with Image.open(io.BytesIO(sent[codec])) as image:
            return int(require_finite(teacher(np.asarray(image.convert("RGB")))).argmax())

    sent: dict[str, bytes] = {SPLIT: encoder.encode(pixels, as_is=True)} | {
        codec: codec_encode(codec) for codec in codecs
    }
    if not np.array_equal(decoder.symbols(sent[SPLIT]), symbols):
        raise BenchmarkError("the feature file does not decode to the symbols that were encoded")
    parts: dict[str, Callable[[], Any]] = {
        "preprocess": lambda: preprocess(picture).tobytes(),
        "edge": lambda: encoder.encode(pixels, as_is=True),
        "cloud": lambda: int(decoder.logits([sent[SPLIT]]).argmax()),
        "teacher": lambda: int(require_finite(teacher(pixels)).argmax()),
    }
    for codec in codecs:
        parts[f"{codec} encode"] = partial(codec_encode, codec)
        parts[f"{codec} cloud"] = partial(codec_classify, codec)
    first = {name: part() for name, part in parts.items()}
    classes = {
        name: decoder.labels[value] for name, value in first.items() if isinstance(value, int)
    }
    if len(set(classes.values())) > 1:
        raise BenchmarkError(
            f"the ways do not see the same in {image_file}: {classes}; choose another picture"
        )
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    warm_up = min(10, runs)
    for run, (name, part) in itertools.product(range(warm_up + runs), parts.items()):
        start = time.perf_counter()
        found = part()
        passed = time.perf_counter() - start
        if found != first[name]:
            raise BenchmarkError(f"{name}: run {run} gives another output than the first")
        if run >= warm_up:
            seconds[name].append(passed)
    times = {name: summary(values) for name, values in seconds.items()}
    resize = times["preprocess"]["median"]
    ways = [
        Way(
            SPLIT,
            resize + times["edge"]["median"],
            times["cloud"]["median"],
            points.bytes,
            points.top1,
        )
    ]
    for codec, (_, codec_bytes) in codecs.items():
        cloud = times[f"{codec} cloud"]["median"]
        ways.append(
            Way(
                codec,
                resize + times[f"{codec} encode"]["median"],
                cloud,
                codec_bytes,
                points.codecs_top1,
            )
        )
    ways.append(Way(ALONE, resize + times["teacher"]["median"], 0.0, 0.0, points.teacher_top1))
    details = {
        "model": MODEL,
        "bundle": decoder.bundle.fingerprint.hex()[:8],
        "precision": precision,
        "teacher": teacher_file.name,
        "picture": image_file.name,
        "class": next(iter(classes.values())),
        "picture_bytes": {name: len(data) for name, data in sent.items()},
        "codec_settings": {
            codec: {"quality": quality, **SETTINGS[codec]} for codec, (quality, _) in codecs.items()
        },
        "parts_ms": times,
    }
    return ways, details


def _as_reported(result: dict[str, Any]) -> list[Way]:
    return [
        replace(way, cloud_ms=result["cloud_factor"] * way.cloud_ms)
        for way in (Way(**one) for one in result["ways"])
    ]


def text(result: dict[str, Any]) -> str:
    """Tables of the parts and of the networks, and what follows from them."""
    ways = _as_reported(result)
    lines = [
        "| way | on the device, ms | in the cloud, ms | bytes | top-1 |",
        "|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {way.name} | {way.device_ms:.1f} | {way.cloud_ms:.1f} | {way.bytes:.0f} | {way.top1:.1%} |"
        for way in ways
    ]
    for index, entry in enumerate(result["advice"]):
        heads = ["network", "uplink", "round trip, ms", *(f"{way.name}, ms" for way in ways)]
        lines += [
            "",
            f"device {entry['device_factor']:g} times slower than this machine"
            if entry["device_factor"] != 1
            else "device: this machine",
        ]
        lines += ["", f"| {' | '.join(heads)} |", f"|---|{'--:|' * (len(heads) - 1)}"]
        for network in result["networks"]:
            row = network["device_factors"][index]
            cells = [
                f"**{ms:.0f}**" if name == row["fastest"] else f"{ms:.0f}"
                for name, ms in row["ms"].items()
            ]
            lines.append(
                f"| {network['name']} | {rate(network['uplink_kbps'])} | {network['rtt_ms']:g} | {' | '.join(cells)} |"
            )
    return "\n".join([*lines, "", *(entry["text"] for entry in result["advice"])])


COLOURS = {
    SPLIT: "#1f77b4",
    "JPEG": "#ff7f0e",
    "WEBP": "#2ca02c",
    "AVIF": "#9467bd",
    ALONE: "#7f7f7f",
}


def draw(result: dict[str, Any], file: Path) -> None:
    """The figure, as a PNG: above, the fastest way on every network; below, all ways on the named ones."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    ways = _as_reported(result)
    factors = [entry["device_factor"] for entry in result["advice"]]
    networks = [
        Network(*(one[key] for key in ("name", "uplink_kbps", "rtt_ms", "assumption")))
        for one in result["networks"]
    ]
    figure = Figure(figsize=(4.6 * len(factors), 8.4), layout="constrained")
    axes = figure.subplots(2, len(factors), squeeze=False, sharex="row", sharey="row")
    uplinks: Any = np.logspace(0, 6, 500)[None]
    trips: Any = np.logspace(0, 4, 400)[:, None]
    colours = ListedColormap([COLOURS[way.name] for way in ways])
    for column, factor in enumerate(factors):
        above, below = axes[0][column], axes[1][column]
        times = [
            np.broadcast_to(way.total_ms(uplinks, trips, factor), (trips.size, uplinks.size))
            for way in ways
        ]
        best = np.argmin(times, 0)
        above.pcolormesh(
            uplinks[0],
            trips[:, 0],
            best,
            cmap=colours,
            vmin=0,
            vmax=len(ways) - 1,
            alpha=0.35,
            rasterized=True,
        )
        device = "this machine" if factor == 1 else f"{factor:g} times slower"
        above.set(xscale="log", yscale="log", title=f"fastest way; device: {device}")
        for network in networks:
            right = network.uplink_kbps < 3e4
            above.plot(network.uplink_kbps, network.rtt_ms, "ko", markersize=3)
            place = {
                "xytext": (4 if right else -4, 3),
                "textcoords": "offset points",
                "ha": "left" if right else "right",
            }
            above.annotate(network.name, (network.uplink_kbps, network.rtt_ms), fontsize=7, **place)
        for way in ways:
            values = [
                way.total_ms(network.uplink_kbps, network.rtt_ms, factor) for network in networks
            ]
            marker = {SPLIT: "o", ALONE: "D"}.get(way.name, "x")
            label = f"{way.name}: {way.bytes:,.0f} bytes, top-1 {way.top1:.1%}"
            below.plot(
                values,
                range(len(networks)),
                marker,
                color=COLOURS[way.name],
                label=label,
                markersize=6,
            )
        below.set(xscale="log", title=f"time an image; device: {device}")
        below.grid(alpha=0.3, which="both")
    ticks = {1: "1k", 10: "10k", 100: "100k", 1000: "1M", 1e4: "10M", 1e5: "100M", 1e6: "1G"}
    axes[0][0].set_xticks(list(ticks), list(ticks.values()))
    axes[0][0].set_yticks([1, 10, 100, 1000, 10_000], ["1 ms", "10 ms", "100 ms", "1 s", "10 s"])
    axes[0][0].set(ylabel="round trip")
    low, high = axes[1][0].get_xlim()
    spans = {
        10: "10 ms",
        30: "30 ms",
        100: "100 ms",
        300: "300 ms",
        1000: "1 s",
        3000: "3 s",
        10_000: "10 s",
        30_000: "30 s",
    }
    shown = {span: name for span, name in spans.items() if low <= span <= high}
    for lower in axes[1]:
        lower.set_xticks(list(shown), list(shown.values()))
        lower.xaxis.set_minor_formatter("")
    axes[1][0].set_yticks(range(len(networks)), [network.name for network in networks])
    axes[1][0].invert_yaxis()
    for upper in axes[0]:
        upper.set_xlabel("uplink, bit/s")
    figure.legend(
        *axes[1][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(ways),
        fontsize="small",
    )
    machine = result["machine"]
    title = f"{result['model']} ({result['precision']}), JPEG, WebP and AVIF at its top-1, and the whole teacher on the device"
    cloud = (
        ""
        if result["cloud_factor"] == 1
        else f"; a cloud {1 / result['cloud_factor']:g} times faster"
    )
    figure.suptitle(
        f"{title}; {machine['processor']}, {machine['threads']} threads{cloud}", fontsize="medium"
    )
    figure.savefig(file, format="png", dpi=110)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
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
        help="the same of the cloud; 0.1: ten times faster (default: 1)",
    )
    parser.add_argument(
        "--image",
        type=Path,
        default=PROJECT / "docs" / "demo" / "golf_ball.jpg",
        metavar="FILE",
        help="default: the demo's picture",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        default=TEACHER,
        metavar="FILE",
        help="the ResNet-50 of the codecs' record (default: checkpoints/imagenette_resnet50.safetensors)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "int8"),
        default="fp32",
        help="of split's two graphs (default: fp32, as the teacher)",
    )
    parser.add_argument(
        "--threads",
        type=number(int, 1, 1024),
        default=cores(),
        metavar="N",
        help="of every part (default: one a core)",
    )
    parser.add_argument(
        "--runs",
        type=number(int, 20, 1_000_000),
        default=100,
        metavar="N",
        help="timed runs of each part (default: 100)",
    )
    parser.add_argument(
        "--parts",
        type=Path,
        metavar="FILE",
        help="a record of this benchmark, whose measurements are used instead of new ones",
    )
    parser.add_argument(
        "--keep", action="store_true", help="write benchmarks/results/breakeven.json and .png"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="three runs, to see that everything works; nothing is kept",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
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
            record = strict_json.loads(args.parts.read_text())
            if record["benchmark"] != "breakeven":
                raise RecordsError(
                    f"{args.parts} is a record of {record['benchmark']}, not of breakeven"
                )
            ways = [Way(**way) for way in record["ways"]]
            head = {
                key: value
                for key, value in record.items()
                if key not in ("cloud_factor", "ways", "networks", "advice")
            }
        else:
            runs = 3 if args.smoke else args.runs
            ways, details = measure(args.image, args.teacher, args.threads, runs, args.precision)
            head = {
                "benchmark": "breakeven",
                "machine": describe(args.threads),
                "commit": commit(),
                "runs": runs,
                **details,
            }
        result = {**head, **report(ways, networks, args.device_factor, args.cloud_factor)}
        if args.keep:
            (RESULTS / "breakeven.json").write_text(
                json.dumps(result, indent=1, allow_nan=False) + "\n"
            )
            draw(result, RESULTS / "breakeven.png")
    except (BenchmarkError, EdgeCloudError, ValueError, KeyError, TypeError, OSError) as error:
        print(f"breakeven: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1, allow_nan=False) if args.json else text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
