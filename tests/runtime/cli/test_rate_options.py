"""--rate, --max-bytes and --target-bytes: files, packs, deliveries, and what is wrong usage."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from commands import GOLF_BALL, Capture
from failing_server import FailingServer
from sending import crops

from runtime import CloudDecoder, EdgeEncoder
from runtime.cli import cloud_decode, edge_encode, edge_send
from runtime.codec.feature_file import parse
from runtime.service.oip import join


@pytest.fixture
def variable(variable_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGECLOUD_BUNDLE", str(variable_bundle))
    return variable_bundle


@pytest.fixture
def folder(tmp_path: Path, golf_ball: np.ndarray) -> Path:
    crops(golf_ball, tmp_path / "images", 8)
    return tmp_path / "images"


def encode(folder: Path, out: Path, *options: str) -> dict[str, bytes]:
    assert edge_encode.main([str(folder), "-o", str(out), *options]) == 0
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_a_rate(variable: Path, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    files = encode(folder, tmp_path / "out", "--rate", "3.5", "--json")
    assert {parse(data).step for data in files.values()} == {56}
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(line["level"], line["kept_channels"]) for line in lines} == {(3.5, None)}
    encoder = EdgeEncoder(variable, 1)
    assert files["000.bin"] == encoder.encode(folder / "000.png", rate=3.5)
    encode(folder, tmp_path / "out", "--rate", "4")
    assert "level 4, " in capsys.readouterr().out


def test_the_most_bytes(variable: Path, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    for most in (30, 100, 400):
        files = encode(folder, tmp_path / f"out{most}", "--max-bytes", str(most))
        assert max(map(len, files.values())) <= most
    image, out = str(folder / "000.png"), tmp_path / "out"
    assert edge_encode.main([image, "-o", str(out), "--max-bytes", "12"]) == 1
    captured = capsys.readouterr()
    assert "000.png: 12 bytes are too few" in captured.err
    assert not out.exists()


def test_a_mean_is_the_same_with_any_number_of_workers(
    variable: Path, folder: Path, tmp_path: Path
) -> None:
    one, three = (
        encode(folder, tmp_path / workers, "--target-bytes", "300", "--workers", workers)
        for workers in ("1", "3")
    )
    assert one == three
    assert np.mean([len(data) for data in one.values()]) == pytest.approx(300, rel=0.15)


def test_resume_keeps_files_of_the_level(
    variable: Path, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    encode(folder, out, "--rate", "3")
    for options, summary in (
        (["--rate", "3"], "0 encoded, 8 skipped"),
        ([], "0 encoded, 8 skipped"),
        (["--rate", "4"], "8 encoded, 0 skipped"),
        (["--max-bytes", "60"], "8 encoded, 0 skipped"),
    ):
        encode(folder, out, "--resume", *options)
        assert summary in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rate", "16"], "from 0 to 15"),
        (["--rate", "nan"], "from 0 to 15"),
        (["--max-bytes", "0"], "from 1 to"),
        (["--max-bytes", "1.5"], "not a whole number"),
        (["--target-bytes", "0"], "from 1 to"),
        (["--rate", "3", "--target-bytes", "300"], "leave out one of both"),
        (["--max-bytes", "200", "--target-bytes", "300"], "--max-bytes is below --target-bytes"),
    ],
)
@pytest.mark.parametrize("command", ["edge-encode", "edge-send"])
def test_wrong_usage(options: list[str], said: str, command: str, capsys: Capture) -> None:
    main = edge_encode.main if command == "edge-encode" else edge_send.main
    more = ["-o", "out"] if command == "edge-encode" else ["--url", "http://localhost:1"]
    with pytest.raises(SystemExit) as ended:
        main([str(GOLF_BALL), *more, *options])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--rate", "3"], ["--max-bytes", "300"], ["--target-bytes", "300"]]
)
def test_a_bundle_with_one_rate(
    bundle: Path, tmp_path: Path, options: list[str], capsys: Capture
) -> None:
    arguments = [str(GOLF_BALL), "--bundle", str(bundle), "-o", str(tmp_path / "feat.bin")]
    assert edge_encode.main([*arguments, *options]) == 1
    assert "has one rate" in capsys.readouterr().err
    assert not (tmp_path / "feat.bin").exists()


def test_cloud_decode_tells_the_level(variable: Path, tmp_path: Path, capsys: Capture) -> None:
    feat = tmp_path / "feat.bin"
    assert edge_encode.main([str(GOLF_BALL), "-o", str(feat), "--rate", "7.5"]) == 0
    capsys.readouterr()
    assert cloud_decode.main(["--info", "--json", str(feat)]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["version"], info["level"], info["kept_channels"]) == (2, 7.5, None)
    assert info["payload_bytes"] == feat.stat().st_size - 12
    assert cloud_decode.main(["--info", str(feat)]) == 0
    assert "level  7.5" in capsys.readouterr().out
    assert edge_encode.main([str(GOLF_BALL), "-o", str(feat), "--max-bytes", "51"]) == 0
    capsys.readouterr()
    assert cloud_decode.main(["--json", str(feat)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["level"] == 0
    assert 0 < result["kept_channels"] < 64
    assert len(result["classes"]) == 5


def test_tune_of_both_ends(
    variable: Path, copy_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    for name in ("WARM_UP", "ROUNDS"):
        monkeypatch.setattr(f"runtime.engine.tune.{name}", 1)
    monkeypatch.setenv("EDGECLOUD_BUNDLE", str(copy_of(variable)))
    feat = tmp_path / "feat.bin"
    assert edge_encode.main([str(GOLF_BALL), "-o", str(feat), "--tune", "--rate", "2"]) == 0
    assert cloud_decode.main([str(feat), "--tune", "--json"]) == 0
    tuned = json.loads((Path(str(feat.parent)) / "bundle" / "tuned.json").read_text())
    for end in ("edge", "cloud"):
        assert any(row["accepted"] and row["deviation"] == 0 for row in tuned[end]["candidates"])


def test_packs(variable: Path, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    pack, target = tmp_path / "pack.parquet", tmp_path / "classes.parquet"
    assert edge_encode.main([str(folder), "--pack", str(pack), "--max-bytes", "150"]) == 0
    files = pq.read_table(pack)["feature_file"].to_pylist()
    assert max(map(len, files)) <= 150
    assert cloud_decode.main([str(pack), "-o", str(target)]) == 0
    found = pq.read_table(target)
    decoder = CloudDecoder(variable, 1)
    assert found["label"].to_pylist() == [decoder.classify(data, 1)[0].label for data in files]
    assert found["error"].to_pylist() == [None] * 8


def test_packs_on_ray(variable: Path, folder: Path, tmp_path: Path) -> None:
    """The actor that classifies a row group, without a cluster."""
    pytest.importorskip("ray")
    pa = pytest.importorskip("pyarrow")
    from runtime.bulk.parquet import bundle_digest
    from runtime.cluster.bulk import _Classifier

    pack = tmp_path / "pack.parquet"
    assert edge_encode.main([str(folder), "--pack", str(pack), "--target-bytes", "300"]) == 0
    decoder = CloudDecoder(variable, 1)
    actor = _Classifier(str(variable), bundle_digest(decoder.bundle), 1, "auto", "auto")
    unit = pa.table({"unit": [0], "source": [str(pack)], "row_group": [0]})
    (row,) = actor(unit).to_pylist()
    assert row["failure"] is None
    found = pa.ipc.open_stream(io.BytesIO(row["predictions"])).read_all()
    assert found.num_rows == 8
    assert found["error"].null_count == 8


@pytest.mark.parametrize(
    "options", [["--rate", "2"], ["--max-bytes", "120"], ["--target-bytes", "300"]]
)
def test_deliveries(
    variable: Path,
    folder: Path,
    server: FailingServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
) -> None:
    monkeypatch.setenv("EDGECLOUD_SPOOL", str(tmp_path / "spool"))
    wanted = encode(folder, tmp_path / "out", *options)
    assert edge_send.main([str(folder), "--url", server.url, *options]) == 0
    assert {post["body"] for post in server.posts} == set(wanted.values())


def test_a_delivery_with_a_bundle_of_one_rate(
    bundle: Path, spool: Path, folder: Path, server: FailingServer, capsys: Capture
) -> None:
    assert edge_send.main([str(folder), "--url", server.url, "--rate", "2"]) == 1
    assert "has one rate" in capsys.readouterr().err
    assert server.posts == []


def test_several_files_of_one_body(variable: Path) -> None:
    """The service's own framing needs lengths, which files of version 2 do not have."""
    from runtime.service.oip import elements

    encoder = EdgeEncoder(variable, 1)
    files = [encoder.encode(GOLF_BALL, rate=level) for level in (0, 4)]
    assert elements(memoryview(join(files)), 2) == files
