"""A checkpoint's metadata, its path and the command agree on what it is, or it is refused."""

import json
from pathlib import Path

import pytest

from export import cli as command
from export.checkpoint import ContradictionError, agreed_lmb, own_labels
from runtime.codec.bundle import Bundle
from training.checkpoint import load_model, save_model

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("path", "lmb", "metadata", "agreed"),
    [
        ("x.safetensors", None, {}, "1.28"),
        ("x.safetensors", "0.08", {}, "0.08"),
        ("x.safetensors", None, {"lmb": "0.64", "model": "ours_n0"}, "0.64"),
        ("x.safetensors", "0.640", {"lmb": "0.64"}, "0.640"),
        ("checkpoints/ours_n0/lmb2.56.pt", None, {}, "2.56"),
        ("checkpoints/ours_n0/lmb2.56.pt", "2.560", {"lmb": "2.56", "model": "ours_n0"}, "2.560"),
        ("checkpoints/mine/lmb_best.pt", None, {"lmb": "0"}, "0"),
        ("ours_n4/x.pt", None, {}, "1.28"),
    ],
)
def test_what_is_said_is_taken(
    path: str, lmb: str | None, metadata: dict[str, str], agreed: str
) -> None:
    assert agreed_lmb(Path(path), "ours_n0", lmb, metadata) == agreed


@pytest.mark.parametrize(
    ("path", "lmb", "metadata", "text"),
    [
        (
            "x.pt",
            None,
            {"model": "ours_n0_enc"},
            "x.pt is of model ours_n0 by the command, ours_n0_enc by its metadata: export it as",
        ),
        (
            "x.pt",
            "1.28",
            {"lmb": "0.64"},
            "x.pt is of lmb 1.28 by the command, 0.64 by its metadata: leave out --lmb",
        ),
        (
            "lmb1.28.pt",
            None,
            {"lmb": "0.64"},
            "of lmb 0.64 by its metadata, 1.28 by its name: .*rename the file",
        ),
        ("lmb0.64.pt", "1.28", {}, "of lmb 1.28 by the command, 0.64 by its name"),
        (
            "checkpoints/ours_n0_enc/x.pt",
            None,
            {},
            "ours_n0 by the command, ours_n0_enc by its folder",
        ),
        (
            "checkpoints/ours_n0/x.pt",
            None,
            {"model": "ours_n0_enc"},
            "ours_n0_enc by its metadata, ours_n0 by its folder",
        ),
        ("x.pt", None, {"lmb": "nan"}, "'nan', no number"),
        ("x.pt", None, {"lmb": "-1"}, "'-1', no number"),
        ("x.pt", None, {"lmb": "none"}, "'none', no number"),
    ],
)
def test_a_contradiction_is_refused(
    path: str, lmb: str | None, metadata: dict[str, str], text: str
) -> None:
    with pytest.raises(ContradictionError, match=text):
        agreed_lmb(Path(path), "ours_n0", lmb, metadata)


def test_labels_are_the_checkpoints_or_refused() -> None:
    assert own_labels({}, 2) is None
    assert own_labels({"labels": '["a", " b\\nc "]'}, 2) == ["a", "b c"]
    with pytest.raises(ContradictionError, match=r"3 labels for 2 classes: .*--labels FILE"):
        own_labels({"labels": '["a", "b", "c"]'}, 2)
    for text in ("", "a, b", '{"a": 1}', "null", "[" * 100_000):
        with pytest.raises(ContradictionError, match=r"no JSON list: .*--labels FILE"):
            own_labels({"labels": text}, 2)


def test_a_checkpoint_is_exported_as_what_it_says(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    model, metadata = load_model(random_checkpoint, "ours_n0")
    file, out = tmp_path / "some.safetensors", tmp_path / "out"
    save_model(file, model, metadata | {"model": "ours_n0_enc", "lmb": "0.64"})
    arguments = ["--checkpoint", str(file), "--out", str(out)]
    # A model of another depth is refused by the metadata too, before its weights are read.
    for asked, text in (
        (["ours_n0"], "ours_n0 by the command, ours_n0_enc by its metadata"),
        (["ours_n4"], "ours_n4 by the command, ours_n0_enc by its metadata"),
        (["ours_n0_enc", "--lmb", "1.28"], "lmb 1.28 by the command, 0.64 by its metadata"),
    ):
        assert command.main([*asked, *arguments]) == 1
        assert text in capsys.readouterr().err
    (tmp_path / "checkpoints" / "ours_n0_enc").mkdir(parents=True)
    file.rename(tmp_path / "checkpoints" / "ours_n0_enc" / "lmb1.28.safetensors")
    monkeypatch.chdir(tmp_path)
    assert command.main(["ours_n0_enc"]) == 1
    assert "lmb 0.64 by its metadata, 1.28 by its name" in capsys.readouterr().err
    assert not out.exists()
    assert not (tmp_path / "bundles").exists()


@pytest.mark.usefixtures("ready_graphs")
def test_what_it_says_is_in_the_bundle(random_checkpoint: Path, tmp_path: Path) -> None:
    model, metadata = load_model(random_checkpoint, "ours_n0")
    save_model(
        tmp_path / "some.safetensors",
        model,
        metadata
        | {"model": "ours_n0_enc", "lmb": "0.64", "labels": json.dumps(list("abcdefghij"))},
    )
    assert (
        command.main(
            [
                "ours_n0_enc",
                "--checkpoint",
                str(tmp_path / "some.safetensors"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    manifest = Bundle.load(tmp_path / "out").manifest
    assert (manifest.model, manifest.lmb) == ("ours_n0_enc", "0.64")
    assert (tmp_path / "out" / "labels.txt").read_text().split() == list("abcdefghij")
