"""Checkpoints as they are found: every file loads, or is refused in one of our own lines."""

import argparse
import collections
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
from torchvision.models import resnet50

from training.checkpoint import (
    CheckpointKeysError,
    NonFiniteCheckpointError,
    load_model,
    load_state,
    start_from_checkpoint,
)
from training.teachers import load_imagenet_teacher, load_teacher
from training.models import build_model, build_random_model
from training.weights import (
    CheckpointError,
    CheckpointTensorError,
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
            "taken are the weights under 'model', not those under 'ema'",
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
    """A model whose class its program alone has."""


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
            "text that begins with '<!DOCTYPE html><html>', as a page",
        ),
        (
            lambda p: p.write_text('{"error": "quota"}'),
            "as a page that came instead of the file: download",
        ),
        (
            lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:a"),
            "git lfs pull",
        ),
        (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"), "it begins with 89 48 44 46"),
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
def test_what_is_no_checkpoint(
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


def test_a_folder_nothing_and_a_pipe(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for path, kind, text in (
        (tmp_path, IsADirectoryError, "name the checkpoint in it"),
        (tmp_path / "none.pt", FileNotFoundError, "no checkpoint at"),
        (tmp_path / "pipe", UnreadableCheckpointError, "save it to a file first"),
    ):
        with pytest.raises(kind, match=text):
            read_state_dict(path)


class Stored:
    """Stands for a storage of `count` floats in a pickle made by hand."""

    def __init__(self, count: int, device: str = "cpu"):
        self.count, self.device = count, device


class Claimed:
    """A tensor in a pickle made by hand: of any size over any storage."""

    def __init__(
        self, storage: Stored, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0
    ):
        self.parts = (storage, offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self) -> tuple:
        return torch._utils._rebuild_tensor_v2, self.parts


def write_by_hand(path: Path, tensor: Claimed, data: bytes) -> None:
    class ByHand(pickle.Pickler):
        def persistent_id(self, thing: object) -> tuple | None:
            return (
                ("storage", torch.FloatStorage, "0", thing.device, thing.count)
                if isinstance(thing, Stored)
                else None
            )

    buffer = io.BytesIO()
    ByHand(buffer, 2).dump({"fc.weight": tensor})
    zipped(
        path,
        {
            "x/data.pkl": buffer.getvalue(),
            "x/byteorder": b"little",
            "x/data/0": data,
            "x/version": b"3\n",
        },
    )


def test_a_tensor_claims_no_more_than_the_file_stores(tmp_path: Path) -> None:
    """41 GB are asked for by 1 KB otherwise."""
    torch.save({"fc.weight": torch.zeros(1).expand(5_000_000, 2048)}, tmp_path / "expanded.pt")
    for load in (lambda p: load_model(p, "ours_n0"), load_teacher):
        with pytest.raises(
            CheckpointTensorError,
            match=r"fc\.weight of \[5000000, 2048\] claims 10,240,000,000 values, and the file stores 1",
        ):
            load(tmp_path / "expanded.pt")
    big = (5_000_000, 2048)
    for tensor in (
        Claimed(Stored(1), big, (2048, 1)),
        Claimed(Stored(5_000_000 * 2048), big, (2048, 1)),
        Claimed(Stored(1), (1 << 62, 4), (1, 1)),
        Claimed(Stored(1), (1,), (1,), -1),
        Claimed(Stored(1), (2, 2), (1, 1), 0),
    ):
        write_by_hand(tmp_path / "made.pt", tensor, bytes(4))
        with pytest.raises(CheckpointError, match=r"made\.pt"):
            read_state_dict(tmp_path / "made.pt")
    # Overlapping rows, of which the file has all values, are what they are; so is what lay on a GPU.
    write_by_hand(
        tmp_path / "made.pt",
        Claimed(Stored(8, "cuda:3"), (2, 3), (2, 1)),
        struct.pack("<8f", *range(8)),
    )
    assert read_state_dict(tmp_path / "made.pt")[0]["fc.weight"].tolist() == [[0, 1, 2], [2, 3, 4]]


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.zeros(2, 2).to_sparse(), r"of layout torch\.sparse_coo, and dense floats"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "is quantized"),
        (torch.zeros(2, device="meta"), "on the device 'meta'"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_without_plain_values(
    tmp_path: Path, tensor: Tensor | Callable, text: str
) -> None:
    torch.save(
        {"fc.weight": tensor if isinstance(tensor, Tensor) else tensor()}, tmp_path / "file.pt"
    )
    with pytest.raises(CheckpointTensorError, match=rf"fc\.weight is .*{text.removeprefix('is ')}"):
        load_teacher(tmp_path / "file.pt")


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
def test_floats_of_any_width_and_order_load(dtype: torch.dtype) -> None:
    module = nn.BatchNorm1d(2)
    state = {
        "weight": torch.tensor([[2.0, 0], [0.5, 0]]).T[0].to(dtype),
        "bias": nn.Parameter(torch.zeros(2)).to(dtype),
    }
    state |= {
        "running_mean": torch.zeros(2),
        "running_var": torch.ones(2),
        "num_batches_tracked": torch.tensor(torch.inf),
    }
    load_state(module, state, "file")
    assert module.weight.tolist() == [2.0, 0.5]
    assert module.num_batches_tracked == 0


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_what_is_no_float_is_refused_where_floats_are_due(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(
        CheckpointKeysError, match=f"of another type: weight is {name}, and floats are wanted"
    ):
        load_state(
            nn.Linear(2, 2),
            {"weight": torch.zeros(2, 2, dtype=dtype), "bias": torch.zeros(2)},
            "file",
        )
    # Beyond float32's range after the conversion.
    with pytest.raises(NonFiniteCheckpointError, match="file: bias"):
        load_state(
            nn.Linear(2, 2),
            {"weight": torch.zeros(2, 2), "bias": torch.full((2,), 1e300, dtype=torch.float64)},
            "file",
        )


def test_files_of_torch_before_batches_were_counted(tmp_path: Path) -> None:
    """torchvision's older ResNet-50 has no num_batches_tracked, and torch loads it strictly."""
    state = {
        key: value
        for key, value in resnet50(num_classes=2).state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(state, tmp_path / "old.pth")
    teacher = load_teacher(tmp_path / "old.pth")
    assert torch.equal(teacher.backbone.layer4[2].conv3.weight, state["layer4.2.conv3.weight"])
    model = build_random_model("ours_n0", 2)
    save_file(
        {
            key: value
            for key, value in model.state_dict().items()
            if not key.endswith("num_batches_tracked")
        },
        tmp_path / "model",
    )
    assert load_model(tmp_path / "model", "ours_n0")[0].classes == 2
    start_from_checkpoint(build_model("ours_n0", 2), tmp_path / "model")


@pytest.mark.parametrize("shape", [(10_000_000, 1), (0, 2048), (3,)])
def test_classes_are_checked_before_they_decide_an_allocation(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    torch.save(
        {"fc.weight": torch.zeros(shape, dtype=torch.int8), "head.bias": torch.zeros(1)},
        tmp_path / "file.pt",
    )
    for load in (lambda p: load_model(p, "ours_n0"), load_teacher):
        with pytest.raises(
            CheckpointKeysError,
            match=r"2048 inputs|misshaped: fc\.weight; its keys begin with fc, head",
        ):
            load(tmp_path / "file.pt")


def test_torchvisions_own_file_is_fetched_once_and_read_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        torch.hub,
        "download_url_to_file",
        lambda *_, **__: (_ for _ in ()).throw(RuntimeError("invalid hash value")),
    )
    with pytest.raises(
        OSError, match=r"cannot be fetched \(invalid hash value\): name a file with --pretrain"
    ):
        load_imagenet_teacher("--pretrain")
    kept = tmp_path / "checkpoints" / "resnet50-0676ba61.pth"
    kept.write_bytes(b"")
    with pytest.raises(UnreadableCheckpointError, match="it is empty"):
        load_imagenet_teacher()
    torch.save(resnet50().state_dict(), kept)
    assert load_imagenet_teacher().classes == 1000
