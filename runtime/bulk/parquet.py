"""Feature files in Parquet: many in one file, to store them, train with them, or classify them.

A pack, which `edge-encode --pack` writes, has the columns
    key string, feature_file binary, width int32, height int32
Predictions, which `cloud-decode` writes, have a column for each member of the best answer of the
bundle's task, which for classification are
    key string, label string, class_index int32, probability float32, error string

`width` and `height` are those of the encoded pixels. `error` is null if the row was decoded. If it
was refused, the members of the answer are null. A pack's schema metadata name the
bundle's fingerprint and model. Packs of other programs may lack these metadata, and may have more
columns, in any order. Needs the extra `[parquet]`.

Always holds: files appear whole or not at all. Memory does not grow with the number of rows. Of a
pack only its metadata are read until its columns and the sizes of its row groups are checked. A row
whose feature file is refused, or whose logits are not finite, is a row with its error: it is never
missing, and never has a class.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..codec.bundle import MANIFEST
from ..codec.feature_file import MAX_FEATURE_FILE_BYTES
from ..errors import (
    DamagedParquetError,
    EmptyFeatureFileError,
    FeatureFileError,
    FeatureFileTooLargeError,
    MissingExtraError,
    NotFiniteLogitsError,
    ParquetNotFoundError,
    ParquetSchemaError,
    ParquetTooLargeError,
    WrongBundleError,
)
from ..tasks.registry import task_named

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from .rows import row_writer
except ImportError as error:
    raise MissingExtraError(
        f"Parquet files need pyarrow ({error}): pip install 'edgecloud-features[parquet]'"
    ) from error

if TYPE_CHECKING:
    from ..cloud import CloudDecoder
    from ..codec.bundle import Bundle

PACK = pa.schema(
    [
        ("key", pa.string()),
        ("feature_file", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
_DECODED = ["key", "feature_file"]  # the columns of a pack that classification reads
# Keys of a pack's schema metadata; the values are text.
FINGERPRINT, MODEL = b"edgecloud.fingerprint", b"edgecloud.model"
_TYPES = {str: pa.string(), int: pa.int32(), float: pa.float32()}  # in the order of the columns
# Key of the metadata of predictions: the SHA-256 of the bundle's manifest, which in turn has the
# SHA-256 of all other files.
MANIFEST_DIGEST = b"edgecloud.manifest_sha256"

BATCH_ROWS = 64  # rows that are classified at a time, which limits the symbols in memory
MAX_GROUP_ROWS, MAX_GROUP_BYTES = 1 << 24, 512 << 20  # larger row groups are not read
MAX_KEY_BYTES = 1 << 16
_READ_ROWS = 4096  # rows read at a time; each read checks all distinct values of the row group
_MAX_METADATA_BYTES = 64 << 20


def predictions_schema(bundle: "Bundle") -> pa.Schema:
    """The columns of predictions: text first, then whole numbers, then other numbers.

    Raises UnsupportedBundleError.
    """
    order = list(_TYPES)
    fields = sorted(
        task_named(bundle.manifest.task).FIELDS, key=lambda field: order.index(field.kind)
    )
    return pa.schema(
        [
            ("key", pa.string()),
            *((field.name, _TYPES[field.kind]) for field in fields),
            ("error", pa.string()),
        ]
    )


@contextmanager
def pack_writer(path: str | os.PathLike[str], bundle: "Bundle") -> Iterator[Callable[..., None]]:
    """Write a pack: gives a function write(key, feature file, width, height).

    The pack appears when the block ends without an error. At most one row group is held in memory.
    Raises OSError.
    """
    with row_writer(
        path,
        PACK.with_metadata({FINGERPRINT: bundle.fingerprint.hex(), MODEL: bundle.manifest.model}),
    ) as write:
        yield write


def check_schema(schema: pa.Schema, bundle: "Bundle | None" = None) -> None:
    """Check that a pack has the right columns, and is of `bundle` if its metadata name a bundle.

    Raises ParquetSchemaError, WrongBundleError.
    """
    for wanted in PACK:
        found = [field.type for field in schema if field.name == wanted.name]
        # Some programs write all strings and bytes with 64-bit offsets.
        large = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(
            wanted.type, wanted.type
        )
        if len(found) != 1 or found[0] not in (wanted.type, large):
            there = (
                f"{len(found)} columns {wanted.name}"
                if len(found) != 1
                else f"{wanted.name} as {found[0]}"
            )
            columns = ", ".join(f"{field.name} {field.type}" for field in PACK)
            raise ParquetSchemaError(
                f"the Parquet file has {there}, a pack of feature files has {columns}: "
                "edge-encode --pack writes one"
            )
    own = bundle and bundle.fingerprint.hex()
    of = (schema.metadata or {}).get(FINGERPRINT, b"").decode("ascii", "replace")
    if own and of and of != own:
        raise WrongBundleError(
            f"the pack is of bundle {of[:8]}, this is {own[:8]}: "
            "decode it with the bundle that encoded it"
        )


@contextmanager
def open_pack(
    path: str | os.PathLike[str], bundle: "Bundle | None" = None
) -> Iterator[pq.ParquetFile]:
    """Open a pack and check its columns and the sizes of its row groups; only metadata are read.

    Raises ParquetError and its subclasses, WrongBundleError, OSError.
    """
    path = Path(path)
    if not path.exists():
        raise ParquetNotFoundError(f"no such file: {path}")
    if path.is_dir():
        raise ParquetNotFoundError(f"{path} is a folder: name the Parquet files in it")
    if not path.is_file():
        raise ParquetNotFoundError(
            f"{path} is a pipe or a device, and a Parquet file is read from its end: "
            "save it in a file first"
        )
    # As bytes, because pyarrow takes no text that is not UTF-8.
    with pa.OSFile(os.fsencode(path)) as source:
        with _damage(path):
            limits = {
                "thrift_string_size_limit": _MAX_METADATA_BYTES,
                "thrift_container_size_limit": _MAX_METADATA_BYTES,
            }
            metadata = pq.ParquetFile(source, **limits).metadata
            schema = metadata.schema.to_arrow_schema()
        check_schema(schema, bundle)
        columns = [
            index
            for index in range(metadata.num_columns)
            if metadata.schema.column(index).path in _DECODED
        ]
        for index in range(metadata.num_row_groups):
            with _damage(path):
                group = metadata.row_group(index)
                size = sum(group.column(column).total_uncompressed_size for column in columns)
            if not 0 <= group.num_rows <= MAX_GROUP_ROWS or not 0 <= size <= MAX_GROUP_BYTES:
                raise ParquetTooLargeError(
                    f"row group {index} of {path} has {group.num_rows} rows and {size} bytes of "
                    f"feature files, at most {MAX_GROUP_ROWS} and {MAX_GROUP_BYTES} are read: "
                    "write it in smaller row groups"
                )
        with _damage(path):
            # With dictionaries, a value is held in memory once, however many rows refer to it.
            file = pq.ParquetFile(
                source,
                metadata=metadata,
                read_dictionary=_DECODED,
                page_checksum_verification=True,
                **limits,
            )
        yield file


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn errors of pyarrow into DamagedParquetError."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise DamagedParquetError(
            f"{path} is not a Parquet file, or damaged ({reason}): copy it again"
        ) from error


def count_rows(path: str | os.PathLike[str]) -> int:
    """The number of rows of a pack, by its metadata. Raises the errors of open_pack."""
    with open_pack(path) as file:
        return int(file.metadata.num_rows)


def batches(
    path: str | os.PathLike[str], bundle: "Bundle | None" = None, row_group: int | None = None
) -> Iterator[pa.RecordBatch]:
    """A pack's keys and feature files in order, as dictionaries of at most BATCH_ROWS rows.

    Args:
        row_group: the row group to read; None for all.

    Raises the errors of open_pack.
    """
    with open_pack(path, bundle) as file:
        found = file.iter_batches(
            _READ_ROWS, columns=_DECODED, row_groups=None if row_group is None else [row_group]
        )
        while True:
            with _damage(Path(path)):
                batch = next(found, None)
                if batch:
                    batch.validate(full=True)  # among others, that text is UTF-8
            if batch is None:
                return
            if _longest(batch.column("key")) > MAX_KEY_BYTES:
                raise ParquetTooLargeError(
                    f"{path} has a key of over {MAX_KEY_BYTES} bytes, which is not read: "
                    "give images shorter names"
                )
            yield from (
                batch.slice(start, BATCH_ROWS) for start in range(0, batch.num_rows, BATCH_ROWS)
            )


def _longest(values: pa.DictionaryArray) -> int:
    """Bytes of the longest value."""
    return pc.max(pc.binary_length(values.dictionary)).as_py() or 0


def classify(rows: pa.Table | pa.RecordBatch, decoder: "CloudDecoder") -> pa.Table:
    """The predictions of a pack's rows, in order: a table as predictions_schema says.

    Args:
        rows: the columns `key` and `feature_file`, as strings and bytes with 32-bit or 64-bit
            offsets, or dictionaries of them; other columns are ignored. The symbols of all rows
            are in memory at once, so give BATCH_ROWS rows at a time.
    """
    files = rows.column("feature_file")
    errors: list[str | None] = [None] * len(files)
    symbols: dict[int, NDArray[Any]] = {}
    for index, scalar in enumerate(files):
        try:
            symbols[index] = decoder.graph_input(_feature_file(scalar))
        except FeatureFileError as error:
            errors[index] = str(error)
    schema = predictions_schema(decoder.bundle)
    best: list[Any] = [None] * len(files)
    for index, logits in zip(symbols, decoder.logits_of_each(list(symbols.values())), strict=True):
        try:
            best[index] = decoder.predictions(logits, 1)[0]
        except NotFiniteLogitsError as error:
            errors[index] = str(error)
    columns = [
        rows.column("key").cast(pa.string()),
        *([one and getattr(one, name) for one in best] for name in schema.names[1:-1]),
        errors,
    ]
    return pa.table(columns, schema)


def _feature_file(scalar: pa.Scalar) -> memoryview:
    """A row's feature file, not copied. Raises the FeatureFileError of a row without one."""
    value = scalar.value if isinstance(scalar, pa.DictionaryScalar) else scalar
    if not value.is_valid:
        raise EmptyFeatureFileError("the row has no feature file (null): encode its image again")
    data = memoryview(value.as_buffer())
    if len(data) > MAX_FEATURE_FILE_BYTES:
        raise FeatureFileTooLargeError(
            f"a feature file of {len(data)} bytes, at most {MAX_FEATURE_FILE_BYTES} are decoded: "
            "send it again"
        )
    return data


def classify_pack(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    decoder: "CloudDecoder",
    progress: Callable[[int], object] | None = None,
) -> tuple[int, int]:
    """Write a pack's predictions as a Parquet file.

    Args:
        source: the pack.
        target: the file of predictions.
        progress: called with the number of rows done since the last call.

    Returns how many rows were decoded, and how many were refused.

    Raises the errors of open_pack; there is then no new `target`.
    """
    decoded = refused = 0
    with prediction_writer(target, decoder.bundle) as write:
        for batch in batches(source, decoder.bundle):
            predictions = classify(batch, decoder)
            write(predictions)
            wrong = count_refused(predictions)
            decoded, refused = decoded + predictions.num_rows - wrong, refused + wrong
            if progress:
                progress(predictions.num_rows)
    return decoded, refused


def count_refused(predictions: pa.Table) -> int:
    """The number of rows with an error."""
    return int(predictions.num_rows - predictions["error"].null_count)


@contextmanager
def prediction_writer(
    path: str | os.PathLike[str], bundle: "Bundle"
) -> Iterator[Callable[[pa.Table], None]]:
    """Write predictions: gives a function write(table), to be called with any number of tables.

    The file appears when the block ends without an error. Raises OSError.
    """
    schema = predictions_schema(bundle).with_metadata({MANIFEST_DIGEST: bundle_digest(bundle)})
    with row_writer(path, schema) as write:

        def write_all(predictions: pa.Table) -> None:
            for row in zip(*(column.to_pylist() for column in predictions.columns), strict=True):
                write(*row)

        yield write_all


def is_classified(path: str | os.PathLike[str], bundle: "Bundle", rows: int) -> bool:
    """Whether a file holds predictions of `rows` rows that were made with exactly this bundle."""
    if not Path(path).is_file():
        return False
    try:
        with pa.OSFile(os.fsencode(path)) as file:
            metadata = pq.read_metadata(file)
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError):
        return False
    found = (schema.metadata or {}).get(MANIFEST_DIGEST)
    return bool(
        metadata.num_rows == rows
        and found == bundle_digest(bundle)
        and schema.equals(predictions_schema(bundle))
    )


def bundle_digest(bundle: "Bundle") -> bytes:
    """Identifies a bundle with all its files: the SHA-256 of its manifest, in hexadecimal."""
    return hashlib.sha256((bundle.folder / MANIFEST).read_bytes()).hexdigest().encode()
