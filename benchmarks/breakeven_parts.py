"""What breakeven.py measures, and what it reads from records.

All parts run in turn, in one run; every graph runs in onnxruntime on the CPU.

Always holds: a feature file decodes to the symbols that were encoded, the exported teacher gives
torch's logits, all ways give the same class, and each part's output stays the same in every run;
a wrong output stops the benchmark.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.breakeven_model import ALONE, SPLIT, Way
from benchmarks.common import RESULTS, BenchmarkError, read_record
from benchmarks.curves import CODECS, bytes_at
from benchmarks.models import make_bundle
from benchmarks.rate_accuracy import UNDER_TEACHER, RecordsError, measured
from benchmarks.timing import in_turn, milliseconds
from runtime import CloudDecoder, EdgeEncoder
from runtime.images.preprocess import load_image, preprocess
from runtime.tasks.classification import require_finite

MODEL, RECORD, CODECS_RECORD = "ours_n4", "accuracy_ours_n4_lmb1.28", "accuracy_codecs"
MAX_LOGIT_ERROR = 1e-3  # of the exported teacher against torch

# Pixels uint8 [224, 224, 3] -> logits [classes].
Teacher = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class OperatingPoints:
    """The model's mean bytes and top-1, each codec's quality and bytes, and the teacher's top-1.

    The codecs' bytes are read at `codecs_top1`: the model's top-1, or one point below the teacher's
    if that is less, since codecs need not reach the model's.
    """

    bytes: float
    top1: float
    codecs: dict[str, tuple[int, float]]
    codecs_top1: float
    teacher_top1: float


def operating_points() -> OperatingPoints:
    """The operating points of the kept records.

    A codec's quality is the cheapest measured one that reaches the top-1. Raises RecordsError.
    """
    record = read_record(RECORD)
    curves = measured(RESULTS)
    top1 = min(record["top1"]["share"], curves.teacher - UNDER_TEACHER)
    found: dict[str, tuple[int, float]] = {}
    Image.init()
    for codec in (codec for codec in CODECS if codec in Image.SAVE):
        points = curves.points.get(codec, [])
        size = bytes_at(points, top1)
        if size is None:
            raise RecordsError(
                f"{CODECS_RECORD}.json has no points of {codec} around a top-1 of {top1:.2%}: "
                "measure more qualities"
            )
        reaching = (point for point in points if point.top1 >= top1)
        cheapest = min(reaching, key=lambda point: point.bytes)
        found[codec] = int(cheapest.name.split()[-1]), size
    share = record["top1"]["share"]
    return OperatingPoints(record["bytes"]["mean"], share, found, top1, curves.teacher)


def export_teacher(file: Path, threads: int, pixels: NDArray[np.uint8], folder: Path) -> Teacher:
    """The teacher, a whole ResNet-50, exported to ONNX in `folder` and opened in onnxruntime.

    Raises BenchmarkError unless its logits of `pixels`, uint8 [224, 224, 3], are torch's.
    """
    from runtime.engine.onnxruntime import open_session

    path = folder / "teacher.onnx"
    expected = _write_teacher(file, pixels, path)
    session = open_session(path, threads)
    source = session.get_inputs()[0].name

    def classify(values: NDArray[Any]) -> NDArray[Any]:
        return session.run(None, {source: values})[0]

    error = float(np.abs(classify(pixels) - expected).max())
    if not error <= MAX_LOGIT_ERROR:
        raise BenchmarkError(
            f"the exported teacher's logits differ from torch's by {error:.2g}: the installed "
            "onnxruntime or torch computes something else"
        )
    return classify


def _write_teacher(file: Path, pixels: NDArray[np.uint8], path: Path) -> NDArray[np.float32]:
    """Write the teacher from pixels to logits as ONNX; gives torch's logits of `pixels`."""
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
            image = pixels.permute(2, 0, 1).unsqueeze(0).float()
            return self.net(image * self.scale + self.shift)[0]

    whole, example, noise = Whole().eval(), torch.tensor(pixels), io.StringIO()
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
        program.save(str(path), external_data=False)
        return whole(example).numpy()


@dataclass(frozen=True)
class _Ends:
    """Both ends of each way for one picture: what is sent, and the functions that are timed."""

    encoder: EdgeEncoder
    decoder: CloudDecoder
    teacher: Teacher
    pixels: NDArray[np.uint8]
    qualities: dict[str, int]

    def codec_file(self, codec: str) -> bytes:
        """The picture in a codec's format."""
        from benchmarks.codecs import SETTINGS

        file = io.BytesIO()
        quality = self.qualities[codec]
        Image.fromarray(self.pixels).save(file, codec, quality=quality, **SETTINGS[codec])
        return file.getvalue()

    def codec_class(self, data: bytes) -> int:
        """The class that the teacher gives a picture in a codec's format."""
        with Image.open(io.BytesIO(data)) as image:
            return self.teacher_class(np.asarray(image.convert("RGB")))

    def teacher_class(self, pixels: NDArray[np.uint8]) -> int:
        """The class that the teacher gives pixels uint8 [224, 224, 3]."""
        return int(require_finite(self.teacher(pixels)).argmax())

    def sent(self) -> dict[str, bytes]:
        """The bytes that each way sends. Raises BenchmarkError."""
        feature_file = self.encoder.encode(self.pixels, as_is=True)
        symbols = self.encoder.symbols(self.pixels[None])[0]
        if not np.array_equal(self.decoder.symbols(feature_file), symbols):
            raise BenchmarkError("the feature file does not decode to the encoded symbols")
        return {SPLIT: feature_file} | {codec: self.codec_file(codec) for codec in self.qualities}

    def parts(self, picture: Image.Image, sent: dict[str, bytes]) -> dict[str, Callable[[], Any]]:
        """The functions that are timed; those that classify give an int."""
        found: dict[str, Callable[[], Any]] = {
            "preprocess": lambda: preprocess(picture).tobytes(),
            "edge": lambda: self.encoder.encode(self.pixels, as_is=True),
            "cloud": lambda: int(self.decoder.logits([sent[SPLIT]]).argmax()),
            "teacher": partial(self.teacher_class, self.pixels),
        }
        for codec in self.qualities:
            found[f"{codec} encode"] = partial(self.codec_file, codec)
            found[f"{codec} cloud"] = partial(self.codec_class, sent[codec])
        return found


def measure(
    image_file: Path, teacher_file: Path, threads: int, runs: int, precision: str = "fp32"
) -> tuple[list[Way], dict[str, Any]]:
    """The ways, and what the record says of their parts; `precision` is that of split's graphs.

    Raises BenchmarkError, RecordsError and EdgeCloudErrors.
    """
    missing = [name for name in ("torch", "compressai", "onnxscript") if not find_spec(name)]
    if missing:
        raise BenchmarkError(
            f"{', '.join(missing)} is not installed, which export needs: "
            "pip install '.[bench]', or use --parts"
        )
    points = operating_points()
    folder = make_bundle(MODEL)
    picture = load_image(image_file)
    pixels = preprocess(picture)
    with tempfile.TemporaryDirectory() as place:
        ends = _Ends(
            EdgeEncoder(folder, threads, provider="cpu", precision=precision),
            CloudDecoder(folder, threads, provider="cpu", precision=precision),
            export_teacher(teacher_file, threads, pixels, Path(place)),
            pixels,
            {codec: quality for codec, (quality, _) in points.codecs.items()},
        )
    sent = ends.sent()
    parts = ends.parts(picture, sent)
    first = {name: part() for name, part in parts.items()}
    label = _common_class(image_file, ends.decoder.labels, first)
    seconds = in_turn(parts, runs, min(10, runs), first)
    times = {name: milliseconds(values) for name, values in seconds.items()}
    return _ways(points, times), {
        "model": MODEL,
        "bundle": ends.decoder.bundle.fingerprint.hex()[:8],
        "precision": precision,
        "teacher": teacher_file.name,
        "picture": image_file.name,
        "class": label,
        "picture_bytes": {name: len(data) for name, data in sent.items()},
        "codec_settings": _codec_settings(ends.qualities),
        "parts_ms": times,
    }


def _common_class(image_file: Path, labels: list[str], first: dict[str, Any]) -> str:
    """The class that all ways give the picture. Raises BenchmarkError if they differ."""
    classes = {name: labels[value] for name, value in first.items() if isinstance(value, int)}
    if len(set(classes.values())) > 1:
        raise BenchmarkError(
            f"the ways give {image_file} different classes: {classes}; choose another picture"
        )
    return next(iter(classes.values()))


def _codec_settings(qualities: dict[str, int]) -> dict[str, dict[str, Any]]:
    from benchmarks.codecs import SETTINGS

    return {codec: {"quality": quality, **SETTINGS[codec]} for codec, quality in qualities.items()}


def _ways(points: OperatingPoints, times: dict[str, dict[str, float]]) -> list[Way]:
    ms = {name: entry["median"] for name, entry in times.items()}
    resize = ms["preprocess"]
    codecs = [
        Way(
            codec,
            resize + ms[f"{codec} encode"],
            ms[f"{codec} cloud"],
            size,
            points.codecs_top1,
        )
        for codec, (_, size) in points.codecs.items()
    ]
    return [
        Way(SPLIT, resize + ms["edge"], ms["cloud"], points.bytes, points.top1),
        *codecs,
        Way(ALONE, resize + ms["teacher"], 0.0, 0.0, points.teacher_top1),
    ]
