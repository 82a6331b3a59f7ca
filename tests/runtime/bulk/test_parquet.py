"""Packs: written whole, read within limits, classified by row, and refused if they are damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import GOLF_BALL
from packs import PREDICTIONS

from runtime import CloudDecoder, EdgeEncoder, errors
from runtime.cli import cloud_decode as cloud_cli

pa = pytest.importorskip(
    "pyarrow", reason="pyarrow comes with the parquet extra", exc_type=ImportError
)
pq = pytest.importorskip("pyarrow.parquet")
parquet = pytest.importorskip("runtime.bulk.parquet")

Capture = pytest.CaptureFixture[str]


def write_pack(path: Path, encoder: EdgeEncoder, rows: list[tuple[str, bytes]]) -> Path:
    with parquet.pack_writer(path, encoder.bundle) as write:
        for key, data in rows:
            write(key, data, 224, 224)
    return path


@pytest.fixture
def pack(tmp_path: Path, encoder: EdgeEncoder, feature_bytes: bytes) -> Path:
    """Three rows, of which the second is damaged."""
    return write_pack(
        tmp_path / "features.parquet",
        encoder,
        [("a.jpg", feature_bytes), ("b", feature_bytes[:-1]), ("c/d", feature_bytes)],
    )


def foreign(path: Path, feature_bytes: bytes, **changed: Any) -> Path:
    """A pack of one row without metadata; `changed` replaces columns; None leaves one out."""
    columns = {
        "key": pa.array(["a"]),
        "feature_file": pa.array([feature_bytes]),
        "width": pa.array([224], pa.int32()),
        "height": pa.array([224], pa.int32()),
    }
    pq.write_table(
        pa.table(
            {name: column for name, column in (columns | changed).items() if column is not None}
        ),
        path,
    )
    return path


def test_a_pack_is_what_its_schema_says(
    pack: Path, encoder: EdgeEncoder, feature_bytes: bytes
) -> None:
    schema = pq.read_schema(pack)
    assert schema.equals(parquet.PACK)
    assert schema.metadata[parquet.FINGERPRINT].decode() == encoder.bundle.fingerprint.hex()
    assert schema.metadata[parquet.MODEL] == b"ours_n4"
    assert pq.read_table(pack).to_pylist()[2] == {
        "key": "c/d",
        "feature_file": feature_bytes,
        "width": 224,
        "height": 224,
    }
    assert [path.name for path in pack.parent.iterdir()] == [pack.name]


def test_row_groups_are_bounded_and_keep_the_order(
    tmp_path: Path, encoder: EdgeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.bulk.rows._GROUP_ROWS", 5)
    monkeypatch.setattr("runtime.bulk.rows._GROUP_BYTES", 4000)
    monkeypatch.setattr(parquet, "_READ_ROWS", 3)
    rows = [(f"{index}", bytes([index]) * (3000 if index == 13 else 100)) for index in range(17)]
    path = write_pack(tmp_path / "features.parquet", encoder, rows)
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [
        5,
        5,
        5,
        2,
    ]
    assert [
        (row["key"], row["feature_file"])
        for batch in parquet.batches(path)
        for row in batch.to_pylist()
    ] == rows
    assert parquet.count_rows(path) == 17
    metadata = pq.ParquetFile(write_pack(path, encoder, [("large", bytes(5000))] * 3)).metadata
    assert metadata.num_row_groups == 3


def test_an_empty_pack(tmp_path: Path, encoder: EdgeEncoder, decoder: CloudDecoder) -> None:
    path = write_pack(tmp_path / "features.parquet", encoder, [])
    assert parquet.classify_pack(path, tmp_path / "predictions.parquet", decoder) == (0, 0)
    assert pq.read_table(tmp_path / "predictions.parquet").schema.equals(PREDICTIONS)


def test_a_pack_that_fails_leaves_nothing(pack: Path, encoder: EdgeEncoder) -> None:
    before = pack.read_bytes()

    def write_and_fail() -> None:
        with parquet.pack_writer(pack, encoder.bundle) as write:
            write("a", b"x", 8, 8)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert pack.read_bytes() == before
    assert [path.name for path in pack.parent.iterdir()] == [pack.name]


def test_each_row_has_its_class_or_its_error(
    pack: Path, decoder: CloudDecoder, feature_bytes: bytes
) -> None:
    target = pack.with_name("predictions.parquet")
    steps: list[int] = []
    assert parquet.classify_pack(pack, target, decoder, steps.append) == (2, 1)
    assert sum(steps) == 3
    found = pq.read_table(target)
    assert found.schema.equals(PREDICTIONS)
    first, second, third = found.to_pylist()
    label, probability, index = decoder.classify(feature_bytes)[0]
    expected = {
        "label": label,
        "class_index": index,
        "probability": pytest.approx(probability, rel=1e-6),
        "error": None,
    }
    assert (first, third) == ({"key": "a.jpg"} | expected, {"key": "c/d"} | expected)
    assert "send it again" in second.pop("error")
    assert second == {"key": "b", "label": None, "class_index": None, "probability": None}


@pytest.mark.slow
def test_a_table_of_any_widths_or_dictionaries(
    decoder: CloudDecoder, feature_bytes: bytes, encoder: EdgeEncoder
) -> None:
    """As Ray or another reader gives it, with images of several sizes: the same predictions."""
    other = encoder.encode(GOLF_BALL, as_is=True)
    keys, files = (
        pa.array(["a", "b", "c", None, "e"]),
        pa.array([feature_bytes, other, None, feature_bytes, b""]),
    )
    expected = parquet.classify(pa.table({"key": keys, "feature_file": files}), decoder)
    assert expected["error"].is_null().to_pylist() == [True, True, False, True, False]
    assert "null" in expected["error"][2].as_py()
    assert expected["key"].to_pylist() == ["a", "b", "c", None, "e"]
    assert expected["class_index"].to_pylist() == [8, 8, None, 8, None]
    for columns in (
        {
            "feature_file": files.cast(pa.large_binary()),
            "more": keys,
            "key": keys.cast(pa.large_string()),
        },
        {"feature_file": files.dictionary_encode(), "key": keys.dictionary_encode()},
    ):
        assert parquet.classify(pa.table(columns), decoder).equals(expected)
        assert parquet.classify(pa.RecordBatch.from_pydict(columns), decoder).equals(expected)
    assert (
        parquet.classify(
            pa.table({"key": keys, "feature_file": files}).slice(0, 0), decoder
        ).num_rows
        == 0
    )


def test_another_programs_pack(tmp_path: Path, decoder: CloudDecoder, feature_bytes: bytes) -> None:
    wide = {
        "key": pa.array(["a"], pa.large_string()),
        "feature_file": pa.array([feature_bytes], pa.large_binary()),
    }
    for changed in ({}, wide, {"before": pa.array([1.5]), "nested": pa.array([[{"key": "x"}]])}):
        path = foreign(tmp_path / "foreign.parquet", feature_bytes, **changed)
        assert parquet.classify_pack(path, tmp_path / "predictions.parquet", decoder) == (1, 0)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"feature_file": None}, "0 columns feature_file"),
        ({"feature_file": ["text"]}, "feature_file as string"),
        ({"key": [1]}, "key as int64"),
        ({"width": [1.5]}, "width as double"),
        ({"height": None}, "0 columns height"),
    ],
)
def test_other_columns_are_refused(
    tmp_path: Path, feature_bytes: bytes, changed: dict[str, Any], text: str
) -> None:
    changed = {
        name: values if values is None else pa.array(values) for name, values in changed.items()
    }
    with (
        pytest.raises(errors.ParquetSchemaError, match=text),
        parquet.open_pack(foreign(tmp_path / "x.parquet", feature_bytes, **changed)),
    ):
        pass


def test_another_bundles_pack_is_refused_as_a_whole(
    tmp_path: Path, pack: Path, feature_bytes: bytes, decoder: CloudDecoder
) -> None:
    table = pq.read_table(pack).replace_schema_metadata({parquet.FINGERPRINT: "00" * 32})
    pq.write_table(table, tmp_path / "other.parquet")
    with pytest.raises(
        errors.WrongBundleError, match=r"the pack is of bundle 00000000, this is [0-9a-f]{8}"
    ):
        parquet.classify_pack(tmp_path / "other.parquet", tmp_path / "predictions.parquet", decoder)
    assert not (tmp_path / "predictions.parquet").exists()


def test_a_row_group_of_absurd_size_is_not_read(
    pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("MAX_GROUP_ROWS", "MAX_GROUP_BYTES"):
        with monkeypatch.context() as patched:
            patched.setattr(parquet, limit, 2)
            patched.setattr(pq.ParquetFile, "iter_batches", None)
            with pytest.raises(
                errors.ParquetTooLargeError,
                match=r"row group 0 of .* has 3 rows and .* smaller row groups",
            ):
                next(parquet.batches(pack))


def test_a_value_that_many_rows_share_is_held_once(tmp_path: Path, feature_bytes: bytes) -> None:
    """A small file may have many rows that share one large value: 1.6 GB if each had a copy."""
    large = bytes(8 << 20)
    path = foreign(
        tmp_path / "bomb.parquet",
        feature_bytes,
        key=pa.array(["a"] * 200),
        feature_file=pa.DictionaryArray.from_arrays(
            pa.array([0] * 200, pa.int32()), pa.array([large])
        ),
        width=pa.array([8] * 200, pa.int32()),
        height=pa.array([8] * 200, pa.int32()),
    )
    # The same pages with a schema of plain bytes, which hides the dictionary.
    with (
        pytest.raises(errors.ParquetSchemaError, match="feature_file as dictionary"),
        parquet.open_pack(path),
    ):
        pass
    pq.write_table(
        pq.read_table(path).cast(parquet.PACK),
        path,
        dictionary_pagesize_limit=64 << 20,
        store_schema=False,
    )
    before = pa.default_memory_pool().max_memory()
    assert path.stat().st_size < 1 << 20
    assert sum(batch.num_rows for batch in parquet.batches(path)) == 200
    assert pa.default_memory_pool().max_memory() < before + (1 << 30)


def test_a_feature_file_of_absurd_size_is_a_refused_row(
    decoder: CloudDecoder, feature_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "MAX_FEATURE_FILE_BYTES", len(feature_bytes))
    found = parquet.classify(
        pa.table({"key": ["a", "b"], "feature_file": [feature_bytes, feature_bytes + b"x"]}),
        decoder,
    )
    assert found["error"][0].as_py() is None
    assert (
        f"of {len(feature_bytes) + 1} bytes, at most {len(feature_bytes)} are decoded"
        in found["error"][1].as_py()
    )


def test_absurd_keys_are_refused(tmp_path: Path, feature_bytes: bytes) -> None:
    with pytest.raises(errors.ParquetTooLargeError, match="a key of over 65536 bytes"):
        list(
            parquet.batches(
                foreign(tmp_path / "x.parquet", feature_bytes, key=pa.array(["k" * 70_000]))
            )
        )
    buffers = pa.array([b"\xff\xfe"]).buffers()
    broken = pa.StringArray.from_buffers(1, buffers[1], buffers[2])
    with pytest.raises(errors.DamagedParquetError, match="UTF"):
        list(parquet.batches(foreign(tmp_path / "x.parquet", feature_bytes, key=broken)))


def test_damage_is_refused_and_leaves_nothing(
    tmp_path: Path, pack: Path, decoder: CloudDecoder, feature_bytes: bytes
) -> None:
    whole = pack.read_bytes()
    cases = {
        "empty": b"",
        "no": b"no Parquet file at all",
        "cut": whole[: len(whole) // 2],
        "footer": whole[:-8] + b"\xff\xff\xff\x7fPAR1",
    }
    at = whole.index(feature_bytes) + 100  # a bit of the first feature file
    cases["page"] = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for name, content in cases.items():
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(content)
        with pytest.raises(
            errors.DamagedParquetError,
            match=rf"{name}\.parquet is not a Parquet file, or damaged .*: copy it again",
        ):
            parquet.classify_pack(path, tmp_path / "out.parquet", decoder)
    with pytest.raises(errors.ParquetNotFoundError, match=r"no such file: .*missing"):
        parquet.count_rows(tmp_path / "missing.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_the_command(
    pack: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("EDGECLOUD_BUNDLE", str(bundle))
    target = pack.with_name("predictions.parquet")
    assert cloud_cli.main([str(pack), "-o", str(target), "--json"]) == 4
    result = json.loads(capsys.readouterr().out)
    assert (result["decoded"], result["refused"], result["output"]) == (2, 1, str(target))
    assert pq.read_table(target).num_rows == 3
    assert cloud_cli.main([str(target), "-o", str(pack.with_name("x.parquet"))]) == 1
    assert "0 columns feature_file" in capsys.readouterr().err


def test_predictions_that_would_replace_their_pack_are_refused(
    pack: Path, bundle: Path, capsys: Capture
) -> None:
    before = pack.read_bytes()
    pack.with_name("hard").hardlink_to(pack)
    pack.with_name("soft").symlink_to(pack.name)
    for target in (pack, pack.with_name("hard"), pack.with_name("soft"), bundle / "tables.json"):
        assert cloud_cli.main([str(pack), "-o", str(target), "--bundle", str(bundle)]) == 1
        assert "the output would replace the input" in capsys.readouterr().err
    assert pack.read_bytes() == before


def test_packs_and_predictions_through_pipes(pack: Path, bundle: Path, tmp_path: Path) -> None:
    """Outputs may go into a pipe. An input may not be one, because it is read from its end."""
    for module, arguments, rows in (
        ("edge_encode", [GOLF_BALL, "--pack", "-"], 1),
        ("cloud_decode", [pack, "-o", "/dev/stdout"], 3),
    ):
        command = [
            sys.executable,
            "-m",
            f"runtime.cli.{module}",
            *map(str, arguments),
            "--bundle",
            str(bundle),
        ]
        done = subprocess.run(command, capture_output=True, check=False)
        assert pq.read_table(pa.BufferReader(done.stdout)).num_rows == rows
        assert b"/dev/stdout" in done.stderr or b"golf_ball" in done.stderr
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(
        errors.ParquetNotFoundError,
        match=r"pipe\.parquet is a pipe or a device, and a Parquet file is read from its end",
    ):
        parquet.count_rows(tmp_path / "pipe.parquet")
    with pytest.raises(
        errors.ParquetNotFoundError, match="is a folder: name the Parquet files in it"
    ):
        parquet.count_rows(tmp_path)
    assert not parquet.is_classified(tmp_path / "pipe.parquet", None, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such name")
def test_a_pack_whose_name_is_not_utf8(pack: Path, decoder: CloudDecoder, tmp_path: Path) -> None:
    name = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.parquet"))
    pack.rename(name)
    target = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.predictions"))
    assert parquet.classify_pack(name, target, decoder) == (2, 1)
    assert parquet.is_classified(target, decoder.bundle, 3)


@pytest.mark.parametrize(
    "arguments", [["a.parquet"], ["a.bin", "-o", "x"], ["a.parquet", "b.parquet", "-o", "x"]]
)
def test_wrong_usage_is_status_2(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as exit_info:
        cloud_cli.main(arguments)
    assert exit_info.value.code == 2
    assert "Parquet file" in capsys.readouterr().err


def test_without_pyarrow_the_error_names_the_extra() -> None:
    code = "import sys; sys.modules['pyarrow'] = None; import runtime.bulk.parquet"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "MissingExtraError" in result.stderr
    assert "pip install 'edgecloud-features[parquet]'" in result.stderr
