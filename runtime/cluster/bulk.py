"""Many packs, classified on a Ray cluster: `cloud-decode --ray features/*.parquet -o out/`.

    packs -> row groups -> a pool of actors, each with a decoder -> predictions -> out/PACK.parquet

An actor reads the row groups that it classifies, so all nodes need the packs and the bundle under
the same path. The driver, where the command runs, writes the predictions, which are a twentieth of
the size. Actors that are lost with a node are started again elsewhere, and their row groups are
classified again. Needs the extra `[ray]`.

Always holds: an output file appears whole or not at all, and has a row for each row of its input,
in order. A run that is started again continues with the packs that have no output of exactly this
bundle. Memory, here and in the actors, depends on the row groups under way, not on the number of
rows. A row that is refused is a row with its error, and a pack that cannot be read stops no other.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from ..bulk.parquet import (
    batches,
    bundle_digest,
    classify,
    count_refused,
    is_classified,
    open_pack,
    prediction_writer,
    predictions_schema,
)
from ..cloud import CloudDecoder
from ..codec.bundle import Bundle
from ..errors import (
    MissingExtraError,
    ParquetError,
    RayClusterError,
    SameOutputError,
    WrongBundleError,
)
from ..files import refuse_same_files

try:
    import pyarrow as pa
    import ray
    import ray.data
    from ray.exceptions import RayError as RayFailure
except ImportError as error:
    raise MissingExtraError(
        f"decoding on a cluster needs Ray ({error}): pip install 'edgecloud-features[ray]'"
    ) from error

_MAX_BLOCKS = 10_000  # blocks of Ray Data; if there are more row groups, they share blocks
_ANSWER_SECONDS = 10.0  # to wait for a cluster's address to answer


class PackResult(NamedTuple):
    """What happened to a pack.

    Attributes:
        decoded, refused: numbers of rows.
        failure: why there is no output; None if there is one.
        skipped: the output existed already.
    """

    source: Path
    target: Path
    decoded: int = 0
    refused: int = 0
    failure: str | None = None
    skipped: bool = False


class Pack(NamedTuple):
    """A pack to classify, and the file for its predictions."""

    source: Path
    target: Path
    rows: int
    row_groups: int


def plan_targets(
    sources: Sequence[str | os.PathLike[str]], folder: str | os.PathLike[str]
) -> list[tuple[Path, Path]]:
    """Each input with its output, which has the same name and is in `folder`.

    Raises SameOutputError if two inputs have one output, or an output is one of the inputs.
    """
    owner: dict[Path, Path] = {}
    for source in map(Path, sources):
        target = Path(folder) / source.name
        if target.resolve() == source.resolve():
            raise SameOutputError(
                f"the predictions of {source} would replace it: name another folder with -o"
            )
        if owner.setdefault(target, source) != source:
            raise SameOutputError(
                f"{owner[target]} and {source} would both become {target}: "
                "rename one, or decode them into two folders"
            )
    refuse_same_files(owner, sources)
    return [(source, target) for target, source in owner.items()]


def plan_packs(
    targets: Sequence[tuple[Path, Path]], bundle: Bundle
) -> tuple[list[Pack], list[PackResult]]:
    """The packs to classify, and the results of those that are done already or cannot be read.

    Args:
        targets: packs and the files for their predictions, as plan_targets gives them.
    """
    packs, results = [], []
    for source, target in targets:
        try:
            with open_pack(source, bundle) as file:
                pack = Pack(source, target, file.metadata.num_rows, file.metadata.num_row_groups)
        except (ParquetError, WrongBundleError, OSError) as error:
            results.append(PackResult(source, target, failure=str(error)))
            continue
        if is_classified(target, bundle, pack.rows):
            results.append(PackResult(source, target, skipped=True))
        else:
            packs.append(pack)
    return packs, results


def classify_packs(
    packs: Sequence[Pack],
    bundle: Bundle,
    threads: int | None = None,
    provider: str = "auto",
    precision: str = "auto",
    progress: Callable[[int], object] = lambda rows: None,
) -> Iterator[PackResult]:
    """Classify packs on the cluster; gives their results in order, each when its file is written.

    Args:
        bundle: must be in the same folder on each node.
        threads: threads of each actor, and the CPUs that Ray reserves for it; None for one.
        provider, precision: as CloudDecoder takes them.
        progress: called with the number of rows done since the last call.

    Raises RayClusterError, OSError.
    """
    if not packs:
        return
    with _cluster():
        units = [
            (str(pack.source.resolve()), group)
            for pack in packs
            for group in range(pack.row_groups)
        ]
        with closing(
            _in_order(
                units,
                str(bundle.folder.resolve()),
                bundle_digest(bundle),
                threads or 1,
                provider,
                precision,
            )
        ) as done:
            for pack in packs:
                yield _write(pack, bundle, done, progress)


@contextmanager
def _cluster() -> Iterator[None]:
    """Connect to the cluster at $RAY_ADDRESS, or the one of this machine, or start one here."""
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS", "")
    host, colon, port = address.rpartition(":")
    try:
        # Ray itself tries an address that does not answer for minutes.
        if colon and port.isdecimal() and "/" not in host:
            socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
        with _own_sigterm():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (RayFailure, OSError, OverflowError, RuntimeError, ValueError) as error:
        where = f"at RAY_ADDRESS={address}" if address else "here"
        raise RayClusterError(
            f"no Ray cluster {where} ({error}): start one with `ray start --head`"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM while Ray starts.

    Ray sets a handler that ends the process with status 15, without a message.
    """
    handler = signal.getsignal(signal.SIGTERM)
    # Outside the main thread Ray sets no handler. One that C code has set cannot be set again.
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return
    try:
        yield
    except SystemExit:  # raised by Ray's handler
        signal.signal(signal.SIGTERM, handler)
        ray.shutdown()
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def _write(
    pack: Pack,
    bundle: Bundle,
    done: "Generator[pa.Table | str, None, None]",
    progress: Callable[[int], object],
) -> PackResult:
    """Write a pack's predictions, which `done` gives, one row group after another."""
    decoded = refused = 0
    failure: str | None = None
    try:
        with prediction_writer(pack.target, bundle) as write:
            for _ in range(pack.row_groups):
                predictions = next(done, "Ray ended before the pack was done: decode it again")
                if isinstance(predictions, str):
                    failure = failure or predictions
                elif failure is None:
                    write(predictions)
                    wrong = count_refused(predictions)
                    decoded, refused = decoded + predictions.num_rows - wrong, refused + wrong
                    progress(predictions.num_rows)
            if failure is None and decoded + refused != pack.rows:
                failure = (
                    f"{pack.source} had {pack.rows} rows, and has {decoded + refused}: "
                    "it was changed, decode it again"
                )
            if failure is not None:
                raise _NotWritten
    except _NotWritten:
        return PackResult(pack.source, pack.target, failure=failure)
    return PackResult(pack.source, pack.target, decoded, refused)


class _NotWritten(Exception):
    """Makes prediction_writer leave no file."""


def _in_order(
    units: list[tuple[str, int]],
    bundle_dir: str,
    digest: bytes,
    threads: int,
    provider: str,
    precision: str,
) -> "Generator[pa.Table | str, None, None]":
    """For each row group, in order, its predictions, or why it could not be read.

    Args:
        units: row groups, each as the path of its pack and its index.
        digest: of the bundle that actors must find in `bundle_dir`.
    """
    if not units:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [
        {"unit": index, "source": os.fsencode(source), "row_group": group}
        for index, (source, group) in enumerate(units)
    ]
    results = ray.data.from_items(
        items, override_num_blocks=min(len(items), _MAX_BLOCKS)
    ).map_batches(
        _Classifier,
        fn_constructor_args=(bundle_dir, digest, threads, provider, precision),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=len(items)),
        num_cpus=threads,
    )
    try:
        with closing(
            cast("Generator[dict[str, Any], None, None]", iter(results.iter_rows()))
        ) as rows:
            for index, row in enumerate(rows):
                assert row["unit"] == index, "Ray Data changed the order"
                yield row["failure"] or pa.ipc.open_stream(row["predictions"]).read_all()
    except RayFailure as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
        raise RayClusterError(
            f"Ray failed: {reason}: what is finished is kept, run the command again to continue"
        ) from error


class _Classifier:
    """An actor: it loads the decoder once, then reads and classifies row groups."""

    def __init__(self, bundle_dir: str, digest: bytes, threads: int, provider: str, precision: str):
        # An error is kept for later, because Ray Data restarts an actor that raises one here
        # forever.
        self.failure: str | None = None
        try:
            self.decoder = CloudDecoder(bundle_dir, threads, provider, precision)
        except Exception as error:
            self.failure = f"on {os.uname().nodename}: {error}"
            return
        if bundle_digest(self.decoder.bundle) != digest:
            self.failure = (
                f"{bundle_dir} on {os.uname().nodename} is another bundle than here: "
                "put the same one on each node"
            )

    def __call__(self, units: pa.Table) -> pa.Table:
        (unit,) = units.to_pylist()
        failure, predictions = self.failure, b""
        try:
            if failure is None:
                predictions = self._classify(os.fsdecode(unit["source"]), unit["row_group"])
        except (ParquetError, WrongBundleError, OSError) as error:
            failure = str(error)
        columns = {
            "unit": [unit["unit"]],
            "predictions": [predictions],
            "failure": pa.array([failure], pa.string()),
        }
        return pa.table(columns)

    def _classify(self, source: str, row_group: int) -> bytes:
        """Predictions of a row group, as a stream of Arrow."""
        sink = pa.BufferOutputStream()
        bundle = self.decoder.bundle
        with pa.ipc.new_stream(sink, predictions_schema(bundle)) as writer:
            for batch in batches(source, bundle, row_group):
                writer.write_table(classify(batch, self.decoder))
        return bytes(sink.getvalue())
