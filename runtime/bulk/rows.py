"""Writes rows to a Parquet file, in row groups of bounded size.

Always holds: the file appears whole or not at all; one row group at most is held in memory.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import atomic_file

_GROUP_ROWS, _GROUP_BYTES = 16_384, 16 << 20  # a row group ends when it has reached either


@contextmanager
def row_writer(path: str | os.PathLike[str], schema: pa.Schema) -> Iterator[Callable[..., None]]:
    """Gives a function write(value of each column), to be called once per row. Raises OSError."""
    columns: list[list[Any]] = [[] for _ in schema]
    size = 0

    def flush() -> None:
        nonlocal size
        size = 0
        writer.write_table(pa.table(columns, schema))
        for column in columns:
            column.clear()

    def write(*row: Any) -> None:
        nonlocal size
        for column, value in zip(columns, row, strict=True):
            column.append(value)
            size += len(value) if isinstance(value, str | bytes) else 4
        if len(columns[0]) >= _GROUP_ROWS or size >= _GROUP_BYTES:
            flush()

    # Feature files are entropy coded, so compression would not help, nor would statistics of them.
    compression = {name: "none" if name == "feature_file" else "zstd" for name in schema.names}
    repeated = [name for name in schema.names if name not in ("key", "feature_file")]
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(
            file,
            schema,
            compression=compression,
            use_dictionary=repeated,
            write_statistics=["key"],
            write_page_checksum=True,
        ) as writer,
    ):
        yield write
        if columns[0]:
            flush()
