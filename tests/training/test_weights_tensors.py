"""The tensors in a checkpoint: none claims more than its file stores, and each fits its module."""

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet50

from training.checkpoint import (
    CheckpointKeysError,
    NonFiniteCheckpointError,
    load_model,
    load_state,
    start_from_checkpoint,
)
from training.models import build_model, build_random_model
from training.teachers import load_imagenet_teacher, load_teacher
from training.weights import (
    CheckpointError,
    CheckpointTensorError,
    UnreadableCheckpointError,
    read_state_dict,
)


class Stored:
    """Stands for a storage of `count` floats in a pickle made by hand."""

    def __init__(self, count: int, device: str = "cpu"):
        self.count, self.device = count, device


class Claimed:
    """A tensor in a pickle made by hand, of any size over any storage."""

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
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", buffer.getvalue())
        archive.writestr("x/byteorder", b"little")
        archive.writestr("x/data/0", data)
        archive.writestr("x/version", b"3\n")


def test_a_tensor_claims_no_more_than_the_file_stores(tmp_path: Path) -> None:
    """Otherwise a file of 1 KB could claim 41 GB."""
    torch.save({"fc.weight": torch.zeros(1).expand(5_000_000, 2048)}, tmp_path / "expanded.pt")
    for load in (lambda p: load_model(p, "ours_n0"), load_teacher):
        with pytest.raises(
            CheckpointTensorError,
            match=r"fc\.weight of \[5000000, 2048\] claims 10,240,000,000 values, "
            "and the file stores 1",
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
    # Overlapping rows load, since the file has all their values, and so does a tensor of a GPU.
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
def test_other_types_are_refused_where_floats_are_needed(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(
        CheckpointKeysError, match=f"of another type: weight is {name}, and floats are wanted"
    ):
        load_state(
            nn.Linear(2, 2),
            {"weight": torch.zeros(2, 2, dtype=dtype), "bias": torch.zeros(2)},
            "file",
        )
    # A float64 beyond float32's range becomes infinite.
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
def test_classes_are_checked_before_memory_is_allocated(
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


def test_torchvisions_file_is_fetched_once_and_read_as_any_other(
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
