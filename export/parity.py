"""The parity gate: the exported graphs against the torch model, on images.

Always holds: a bundle whose graphs differ from the model beyond these bounds is never written; nor is one
whose logits are not finite numbers on these images, or whose weights say that they are not on others.

Each comparison is written so that it fails for a NaN, which is neither over a limit nor under it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from runtime.codec.coder import Tables
from runtime.codec.feature_file import Profile
from runtime.engine.onnxruntime import open_session
from training.data import MEAN, STD
from training.models import FeatureCompressionModel

from .graphs import MAX_SYMBOL, as_symbols

BATCHES = (1, 2, 5)
MIN_EQUAL_SHARE = 0.9999
MIN_NONZERO_SHARE = 0.01  # below this equality would mean little
MAX_LOGIT_DIFFERENCE = 1e-3


class ParityError(RuntimeError):
    """A graph, or the coder, does not give what torch gives."""


@dataclass(frozen=True)
class ParityReport:
    """What the gate saw. Shares are of symbols, 0 to 1; the difference is of logits, absolute."""

    images: int
    source: str
    symbols: int
    equal_share: float
    nonzero_share: float
    largest_symbol_difference: int
    largest_logit_difference: float
    top1_equal: bool
    mean_payload_bytes: float
    mean_small_payload_bytes: float | None  # where there are context tables

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@torch.inference_mode()
def torch_symbols(model: FeatureCompressionModel, pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """What the model as it was trained makes of pixels uint8 [N, H, W, 3]: int16 [N, C, H', W']."""
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    image = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    return as_symbols(model.bottleneck_layer.symbols(image)).numpy()


def check_parity(
    model: FeatureCompressionModel,
    tables: Tables,
    edge: Path,
    cloud: Path,
    images: NDArray[np.uint8],
    source: str,
) -> ParityReport:
    """Compare on `images`, uint8 [N, H, W, 3], in batches of 1, 2 and 5; raises ParityError."""
    edge_session, cloud_session = open_session(edge), open_session(cloud)
    equal = nonzero = total = payload_bytes = small_bytes = not_finite = 0
    symbol_difference, logit_difference, top1_equal = 0, 0.0, True
    start = index = 0
    while start < len(images):
        batch = images[start : start + BATCHES[index % len(BATCHES)]]
        with torch.no_grad():
            expected = torch_symbols(model, batch)
            expected_logits = model.logits_of_symbols(torch.from_numpy(expected).float()).numpy()
        symbols = edge_session.run(None, {"pixels": batch})[0]
        if symbols.shape != expected.shape or symbols.dtype != expected.dtype:
            raise ParityError(
                f"the edge graph gives {symbols.dtype} {symbols.shape}, torch {expected.dtype} {expected.shape}"
            )
        equal += int((symbols == expected).sum())
        nonzero += int((expected != 0).sum())
        total += symbols.size
        symbol_difference = max(
            symbol_difference, int(np.abs(symbols.astype(np.int32) - expected).max())
        )
        logits = cloud_session.run(None, {"symbols": expected})[0]
        if logits.shape != expected_logits.shape:
            raise ParityError(
                f"the cloud graph gives logits {logits.shape}, torch {expected_logits.shape}"
            )
        finite = np.isfinite(logits) & np.isfinite(expected_logits)
        not_finite += int((~finite).sum())
        logit_difference = max(
            logit_difference, float(np.abs(logits[finite] - expected_logits[finite]).max(initial=0))
        )
        top1_equal &= bool((logits.argmax(1) == expected_logits.argmax(1)).all())
        for one in symbols:
            payload_bytes += _round_trip(tables, one)
            small_bytes += _round_trip(tables, one, Profile.CONTEXT) if tables.contexts else 0
        start += len(batch)
        index += 1
    forced = _with_escapes(symbols[-1], tables)
    _round_trip(tables, forced)
    if tables.contexts:
        _round_trip(tables, forced, Profile.CONTEXT)
    report = ParityReport(
        images=len(images),
        source=source,
        symbols=total,
        equal_share=equal / total,
        nonzero_share=nonzero / total,
        largest_symbol_difference=symbol_difference,
        largest_logit_difference=logit_difference,
        top1_equal=top1_equal,
        mean_payload_bytes=payload_bytes / len(images),
        mean_small_payload_bytes=small_bytes / len(images) if tables.contexts else None,
    )
    failures = [
        text
        for failed, text in (
            (
                not report.equal_share >= MIN_EQUAL_SHARE,
                f"{report.equal_share:.6%} of the symbols equal torch's, under {MIN_EQUAL_SHARE:.2%}",
            ),
            (symbol_difference > 1, f"a symbol differs from torch's by {symbol_difference}"),
            (
                not report.nonzero_share >= MIN_NONZERO_SHARE,
                f"only {report.nonzero_share:.2%} of the symbols are not zero, so equality means little: give livelier --images",
            ),
            (
                not_finite > 0,
                f"{not_finite} logits are not finite numbers: the checkpoint is broken",
            ),
            *((True, reason) for reason in broken_statistics(model)),
            (
                not logit_difference <= MAX_LOGIT_DIFFERENCE,
                f"a logit differs by {logit_difference:.2g}, over {MAX_LOGIT_DIFFERENCE:g}",
            ),
            (not top1_equal, "a top-1 class differs from torch's"),
        )
        if failed
    ]
    if failures:
        raise ParityError("; ".join(failures))
    return report


def broken_statistics(model: FeatureCompressionModel) -> list[str]:
    """What batch norms have that no training gives, and that makes some or all logits NaN or infinite."""
    return [
        f"{name}.running_var has {float(layer.running_var.min()):g}, and a variance is never below 0: the checkpoint is broken"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
        and layer.running_var is not None
        and not (layer.running_var >= 0).all()
    ]


def _round_trip(
    tables: Tables, symbols: NDArray[np.int16], profile: Profile = Profile.STATIC
) -> int:
    payload = tables.encode(symbols, profile)
    if not np.array_equal(tables.decode(payload, symbols.shape[1:], profile), symbols):
        raise ParityError("the coder does not give back the symbols that it was given")
    return len(payload)


def _with_escapes(symbols: NDArray[np.int16], tables: Tables) -> NDArray[np.int16]:
    """The symbols with values that no table holds strewn in, the extremes among them."""
    forced = symbols.copy().reshape(len(symbols), -1)
    for channel, (cdf, offset) in enumerate(zip(tables.cdfs, tables.offsets, strict=True)):
        above, below = int(offset) + len(cdf) - 2, int(offset) - 1
        values = np.clip(
            [above, below, above + 63, below - 64, MAX_SYMBOL, -MAX_SYMBOL], -MAX_SYMBOL, MAX_SYMBOL
        )
        places = np.linspace(0, forced.shape[1] - 1, len(values)).astype(int)
        forced[channel, places] = values
    return forced.reshape(symbols.shape)
