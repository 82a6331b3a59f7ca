"""Packs to classify, and the check of their predictions."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from ray_load import Sample

from runtime import CloudDecoder
from runtime.bulk.parquet import PACK, classify


def write_packs(folder: Path, samples: list[Sample]) -> list[Path]:
    """Three packs of 24 rows in 6 row groups; two rows of the second are no feature files."""
    folder.mkdir()
    paths = []
    for number in range(3):
        rows = [
            {"key": f"{number}/{row}", "feature_file": samples[(number + row) % len(samples)].data}
            for row in range(24)
        ]
        if number == 1:
            rows[5]["feature_file"], rows[9]["feature_file"] = rows[5]["feature_file"][:-2], None
        paths.append(folder / f"pack{number}.parquet")
        columns = [
            pa.array([row.get(name) for row in rows], PACK.field(name).type)
            for name in ("key", "feature_file")
        ]
        sizes = [pa.array([224] * 24, pa.int32())] * 2
        pq.write_table(
            pa.table(columns + sizes, PACK),
            paths[-1],
            row_group_size=4,
            compression="none",
            write_page_checksum=True,
        )
    return paths


PREDICTIONS = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.string()),
        ("class_index", pa.int32()),
        ("probability", pa.float32()),
        ("error", pa.string()),
    ]
)


def check_predictions(source: Path, target: Path, decoder: CloudDecoder) -> None:
    """Compare predictions with those of this process, row by row."""
    found = pq.read_table(target)
    wanted = classify(pq.read_table(source), decoder)
    assert found.schema.equals(PREDICTIONS)
    for name in ("key", "label", "class_index", "error"):
        assert found[name].to_pylist() == wanted[name].to_pylist()
    for one, other in zip(
        found["probability"].to_pylist(), wanted["probability"].to_pylist(), strict=True
    ):
        assert one is other or abs(one - other) < 1e-4
