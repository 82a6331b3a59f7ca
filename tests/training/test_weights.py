"""Checkpoint files of all kinds: each one loads, or is refused in one line of ours."""

import argparse
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from training.weights import (
    UnreadableCheckpointError,
    read_state_dict,
)

STATE = {"conv1.weight": torch.arange(8.0), "fc.bias": torch.ones(2)}


def is_state(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(
        torch.equal(found[key], STATE[key]) for key in STATE
    )


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in STATE.items()}


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "student.", "net.", "module._orig_mod.", "a.b.module.c."],
)
@pytest.mark.parametrize("write", [torch.save, save_file])
def test_a_prefix_that_all_keys_share_is_taken_off(
    tmp_path: Path, prefix: str, write: Callable
) -> None:
    write(prefixed(prefix), tmp_path / "file")
    assert is_state(read_state_dict(tmp_path / "file")[0])


def test_a_wrappers_name_is_taken_off_within_a_key_and_our_own_modules_stay(tmp_path: Path) -> None:
    torch.save(
        {"layer2._orig_mod.module.0.bias": torch.ones(1), "layer2.1.bias": torch.ones(1)},
        tmp_path / "file",
    )
    assert [*read_state_dict(tmp_path / "file")[0]] == ["layer2.0.bias", "layer2.1.bias"]
    torch.save({"module.bottleneck_layer.encoder.0.bias": torch.ones(1)}, tmp_path / "file")
    assert [*read_state_dict(tmp_path / "file")[0]] == ["bottleneck_layer.encoder.0.bias"]
    torch.save(prefixed("module.") | STATE, tmp_path / "file")
    with pytest.raises(UnreadableCheckpointError, match="twice, with and without"):
        read_state_dict(tmp_path / "file")


OTHER = {key: value + 1 for key, value in STATE.items()}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": STATE, "epoch": torch.tensor(3), "optimizer": {"state": {}}}, None),
        ({"net": STATE}, None),
        ({"weights": STATE}, None),
        ({"checkpoint": {"state_dict": prefixed("module.")}}, None),
        ({"model": STATE, "args": argparse.Namespace(lr=1)}, None),
        (
            {"model": STATE, "ema": OTHER},
            "taking the weights under 'model', not those under 'ema'",
        ),
        (
            {"state_dict": STATE, "state_dict_ema": OTHER},
            "under 'state_dict', not those under 'state_dict_ema'",
        ),
        ({"model_ema": STATE, "epoch": 1}, "under 'model_ema'"),
        ({"student": STATE, "teacher": OTHER}, None),
        (AveragedModel(nn.Linear(1, 1)).state_dict(), "linear"),
    ],
)
def test_what_training_loops_save(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], said: str | None
) -> None:
    torch.save(content, tmp_path / "file")
    found = read_state_dict(tmp_path / "file")[0]
    if said == "linear":
        assert [*found] == ["weight", "bias"]
        return
    assert is_state(found)
    error = capsys.readouterr().err
    assert said in error if said else error == ""


def test_a_files_first_bytes_say_what_it_is(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "safe.pt")
    torch.save(STATE, tmp_path / "zip.safetensors")
    torch.save(STATE, tmp_path / "legacy.safetensors", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert is_state(read_state_dict(path)[0])
    # Packed again by a zip tool.
    with (
        zipfile.ZipFile(tmp_path / "zip.safetensors") as old,
        zipfile.ZipFile(tmp_path / "again.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert is_state(read_state_dict(tmp_path / "again.pt")[0])


class Own(nn.Module):
    """A model of a class that only its own program has."""


def zipped(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())


def write_half(path: Path, **how: bool) -> None:
    torch.save({"a": torch.zeros(10_000)}, path, **how)
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda p: p.write_bytes(b""), "it is empty: copy it again"),
        (
            lambda p: p.write_text("<!DOCTYPE html><html>"),
            "text that starts with '<!DOCTYPE html><html>', like an error page",
        ),
        (
            lambda p: p.write_text('{"error": "quota"}'),
            "like an error page in place of the file: download",
        ),
        (
            lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a"),
            "git lfs pull",
        ),
        (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"), "it starts with 89 48 44 46"),
        (write_tar, "tar archive"),
        (lambda p: p.write_bytes(pickle.dumps(STATE)), "a pickle of another program"),
        (lambda p: zipped(p, {"lmb1.28.pt": b"1"}), r"zip archive of lmb1\.28\.pt: unpack it"),
        (lambda p: zipped(p, {}), "zip archive of nothing"),
        (lambda p: zipped(p, {"x/data.pkl": b"\x80\x02}.", "x/constants.pkl": b""}), "TorchScript"),
        (
            lambda p: zipped(
                p, {"x/data.pkl": b"", "x/data/0": bytes(70 << 20)}, zipfile.ZIP_DEFLATED
            ),
            "over 10 times its size",
        ),
        (
            lambda p: zipped(p, {"x/data.pkl": b"noise", "x/version": b"3"}),
            "is damaged, or holds more",
        ),
        (write_half, "or was cut off"),
        (
            lambda p: write_half(p, _use_new_zipfile_serialization=False),
            "is damaged, or holds more",
        ),
        (lambda p: torch.save(Own(), p), r"holds a tests\.\S*Own|holds a test_weights\.Own"),
        (
            lambda p: torch.save({"model": Own()}, p, _use_new_zipfile_serialization=False),
            r"save model\.state_dict\(\) alone",
        ),
        (lambda p: torch.save({"a": {"b": Path("c")}}, p), r"holds a pathlib\.\S*PosixPath"),
        (lambda p: torch.save([1], p), "no state_dict, .* but a list"),
        (
            lambda p: torch.save({"epoch": 3, "loss": 0.1}, p),
            "no state_dict, .* but 'epoch', 'loss'",
        ),
        (lambda p: torch.save(STATE | {"best": 0.5}, p), "'best' is a float among tensors"),
        (
            lambda p: torch.save({"model": STATE | {3: torch.zeros(1)}}, p),
            "under 'model': 3 is a Tensor among",
        ),
        (
            lambda p: p.write_bytes(safetensors(b"{", length=1 << 30)),
            "header of 1,073,741,824 bytes",
        ),
        (lambda p: p.write_bytes(safetensors(b'{"a":')), "damaged safetensors file"),
        (
            lambda p: p.write_bytes(
                safetensors(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"1")
            ),
            "damaged safetensors",
        ),
        (
            lambda p: p.write_bytes(
                safetensors(b'{"a":{"dtype":"F9","shape":[2],"data_offsets":[0,8]}}', b"12345678")
            ),
            "damaged",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_that_is_not_a_checkpoint_is_refused(
    tmp_path: Path, write: Callable[[Path], Any], text: str, suffix: str
) -> None:
    path = tmp_path / f"file.{suffix}"
    write(path)
    with pytest.raises(UnreadableCheckpointError, match=text) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert str(path) in message
    assert not {"\n", "\x1b"} & {*message}
    assert not any(
        advice in message
        for advice in ("weights_only=False", "`weights_only`", "add_safe_globals", "trust")
    )


def test_a_folder_a_missing_file_and_a_pipe_are_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for path, kind, text in (
        (tmp_path, IsADirectoryError, "name the checkpoint in it"),
        (tmp_path / "none.pt", FileNotFoundError, "no checkpoint at"),
        (tmp_path / "pipe", UnreadableCheckpointError, "save it to a file first"),
    ):
        with pytest.raises(kind, match=text):
            read_state_dict(path)
