"""The parity check: the exported graphs and the coder, compared with the torch model on images.

Always holds: no bundle is written whose graphs differ from the model by more than these bounds;
nor one whose logits are not finite on these images, or whose weights show that they are not on
others. Each comparison is written so that a NaN fails it.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from runtime.codec.coder import Tables
from runtime.codec.feature_file import Profile
from runtime.codec.rates import STEPS_PER_LEVEL
from runtime.codec.variable_rate import VariableRate
from runtime.engine.onnxruntime import open_session
from training.models import FeatureCompressionModel

from .graphs import MAX_SYMBOL, as_symbols
from .link import Link
from .tables import link_of, tables_at

BATCHES = (1, 2, 5)
MIN_EQUAL_SHARE = 0.9999
MIN_NONZERO_SHARE = 0.01  # with fewer, equal symbols would prove little
MAX_LOGIT_DIFFERENCE = 1e-3
MAX_EMBEDDING_DIFFERENCE = 1e-3


class ParityError(RuntimeError):
    """A graph, or the coder, does not give what torch gives."""


@dataclass(frozen=True)
class ParityReport:
    """What was found on the images, at one step.

    Shares are of symbols, 0 to 1. Differences are absolute; those of logits and embeddings are of
    the values that are finite. Payloads are in bytes.
    """

    images: int
    source: str
    symbols: int
    equal_share: float
    nonzero_share: float
    largest_symbol_difference: int
    largest_logit_difference: float
    largest_embedding_difference: float
    top1_equal: bool
    mean_payload_bytes: float
    mean_small_payload_bytes: float | None  # None without context tables

    def as_dict(self) -> dict[str, object]:
        """As the manifest records it."""
        return asdict(self)


@dataclass(frozen=True)
class _Results:
    """What torch and the graphs give for some images: a row an image."""

    expected_symbols: NDArray[np.int16]
    symbols: NDArray[np.int16]
    expected_logits: NDArray[np.float32]
    logits: NDArray[np.float32]
    expected_embeddings: NDArray[np.float32]
    embeddings: NDArray[np.float32]


def _level(step: int | None) -> float | None:
    return None if step is None else step / STEPS_PER_LEVEL


@torch.inference_mode()
def torch_symbols(
    model: FeatureCompressionModel, pixels: NDArray[np.uint8], step: int | None = None
) -> NDArray[np.int16]:
    """The symbols int16 [N, C, H', W'] that torch gives for pixels uint8 [N, H, W, 3]."""
    mean, std = model.spec.backbone.normalisation.tensors()
    image = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    return as_symbols(model.bottleneck_layer.symbols(image, _level(step))).numpy()


@torch.inference_mode()
def torch_outputs(
    model: FeatureCompressionModel, symbols: NDArray[np.int16], step: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The logits [N, classes] and embeddings [N, D] that torch gives for symbols."""
    features = model.bottleneck_layer.decode(torch.from_numpy(symbols).float(), _level(step))
    found = model.tail(features)
    return found.logits.numpy(), found.embedding.numpy()


def check_parity(
    model: FeatureCompressionModel,
    tables: Tables | VariableRate,
    edge: Path,
    cloud: Path,
    images: NDArray[np.uint8],
    source: str,
    step: int | None = None,
) -> ParityReport:
    """Compare both graphs and the coder with torch.

    Args:
        edge, cloud: the graphs.
        images: uint8 [N, H, W, 3]. They are run in batches of 1, 2 and 5.
        source: says in the report which images these are.
        step: at which a variable-rate model is compared; None at a fixed rate.

    Raises ParityError.
    """
    batches = list(_results(model, link_of(tables), step, edge, cloud, images))
    symbols = np.concatenate([batch.symbols for batch in batches])
    expected = np.concatenate([batch.expected_symbols for batch in batches])
    logits = np.concatenate([batch.logits for batch in batches])
    expected_logits = np.concatenate([batch.expected_logits for batch in batches])
    plain, small = _payload_bytes(tables_at(tables, step), symbols)
    report = ParityReport(
        images=len(images),
        source=source,
        symbols=symbols.size,
        equal_share=float((symbols == expected).mean()),
        nonzero_share=float((expected != 0).mean()),
        largest_symbol_difference=int(np.abs(symbols.astype(np.int32) - expected).max()),
        largest_logit_difference=_largest_difference(logits, expected_logits),
        largest_embedding_difference=_largest_difference(
            np.concatenate([batch.embeddings for batch in batches]),
            np.concatenate([batch.expected_embeddings for batch in batches]),
        ),
        top1_equal=bool((logits.argmax(1) == expected_logits.argmax(1)).all()),
        mean_payload_bytes=plain,
        mean_small_payload_bytes=small,
    )
    finite = np.isfinite(logits) & np.isfinite(expected_logits)
    failures = _failures(report, int((~finite).sum()), model)
    if failures:
        where = "" if step is None else f"at rate level {_level(step):g}: "
        raise ParityError(where + "; ".join(failures))
    return report


def _results(
    model: FeatureCompressionModel,
    link: Link,
    step: int | None,
    edge: Path,
    cloud: Path,
    images: NDArray[np.uint8],
) -> Iterator[_Results]:
    """Torch and both graphs, batch by batch. The cloud graph gets torch's symbols.

    Raises ParityError for an output of another shape or type.
    """
    edge_session, cloud_session = open_session(edge), open_session(cloud)
    start = index = 0
    while start < len(images):
        batch = images[start : start + BATCHES[index % len(BATCHES)]]
        expected = torch_symbols(model, batch, step)
        expected_logits, expected_embeddings = torch_outputs(model, expected, step)
        symbols = link.symbols(edge_session.run(None, {"pixels": batch})[0], step)
        logits, embeddings = cloud_session.run(["logits", "embedding"], link.feed(expected, step))
        if symbols.shape != expected.shape or symbols.dtype != expected.dtype:
            raise ParityError(
                f"the edge graph gives {symbols.dtype} {symbols.shape}, "
                f"torch {expected.dtype} {expected.shape}"
            )
        for what, found, wanted in (
            ("logits", logits, expected_logits),
            ("embeddings", embeddings, expected_embeddings),
        ):
            if found.shape != wanted.shape:
                raise ParityError(
                    f"the cloud graph gives {what} {found.shape}, torch {wanted.shape}"
                )
        yield _Results(expected, symbols, expected_logits, logits, expected_embeddings, embeddings)
        start += len(batch)
        index += 1


def _largest_difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference of values that are finite in both."""
    finite = np.isfinite(found) & np.isfinite(expected)
    return float(np.abs(found[finite] - expected[finite]).max(initial=0))


def _payload_bytes(tables: Tables, symbols: NDArray[np.int16]) -> tuple[float, float | None]:
    """Mean bytes of plain and of small payloads of symbols [N, C, H', W'], decoded to check them.

    There are no small ones without context tables. Raises ParityError where the coder is not exact.
    """
    forced = _with_escapes(symbols[-1], tables)
    means = []
    for profile in (Profile.STATIC, *([Profile.CONTEXT] if tables.contexts else [])):
        means.append(float(np.mean([_round_trip(tables, one, profile) for one in symbols])))
        _round_trip(tables, forced, profile)
    return means[0], means[1] if tables.contexts else None


def _failures(report: ParityReport, not_finite: int, model: FeatureCompressionModel) -> list[str]:
    """Which bounds do not hold, as text; `not_finite` is the number of logits that are not."""
    checks = (
        (
            report.equal_share >= MIN_EQUAL_SHARE,
            f"{report.equal_share:.6%} of the symbols equal torch's, under {MIN_EQUAL_SHARE:.2%}",
        ),
        (
            report.largest_symbol_difference <= 1,
            f"a symbol differs from torch's by {report.largest_symbol_difference}",
        ),
        (
            report.nonzero_share >= MIN_NONZERO_SHARE,
            f"only {report.nonzero_share:.2%} of the symbols are not zero, "
            "so equality means little: give livelier --images",
        ),
        (
            not_finite == 0,
            f"{not_finite} logits are not finite numbers: the checkpoint is broken",
        ),
        *((False, reason) for reason in broken_statistics(model)),
        (
            report.largest_logit_difference <= MAX_LOGIT_DIFFERENCE,
            f"a logit differs by {report.largest_logit_difference:.2g}, "
            f"over {MAX_LOGIT_DIFFERENCE:g}",
        ),
        (
            report.largest_embedding_difference <= MAX_EMBEDDING_DIFFERENCE,
            f"an embedding differs by {report.largest_embedding_difference:.2g}, "
            f"over {MAX_EMBEDDING_DIFFERENCE:g}",
        ),
        (report.top1_equal, "a top-1 class differs from torch's"),
    )
    return [text for holds, text in checks if not holds]


def broken_statistics(model: FeatureCompressionModel) -> list[str]:
    """Batch norms with a variance that training cannot give, and with which logits may be NaN."""
    return [
        f"{name}.running_var has {float(layer.running_var.min()):g}, "
        "and a variance is never below 0: the checkpoint is broken"
        for name, layer in model.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
        and layer.running_var is not None
        and not (layer.running_var >= 0).all()
    ]


def _round_trip(tables: Tables, symbols: NDArray[np.int16], profile: Profile) -> int:
    """Bytes of the payload of symbols [C, H', W']. Raises ParityError if it decodes to others."""
    payload = tables.encode(symbols, profile)
    if not np.array_equal(tables.decode(payload, symbols.shape[1:], profile), symbols):
        raise ParityError("the coder does not give back the symbols that it was given")
    return len(payload)


def _with_escapes(symbols: NDArray[np.int16], tables: Tables) -> NDArray[np.int16]:
    """The symbols, with values that no table holds put among them, the extremes included."""
    forced = symbols.copy().reshape(len(symbols), -1)
    for channel, (cdf, offset) in enumerate(zip(tables.cdfs, tables.offsets, strict=True)):
        above, below = int(offset) + len(cdf) - 2, int(offset) - 1
        values = np.clip(
            [above, below, above + 63, below - 64, MAX_SYMBOL, -MAX_SYMBOL], -MAX_SYMBOL, MAX_SYMBOL
        )
        places = np.linspace(0, forced.shape[1] - 1, len(values)).astype(int)
        forced[channel, places] = values
    return forced.reshape(symbols.shape)
