"""The C library through ctypes: csrc/include/edgecloud.h as Python objects, for tests."""

import ctypes
import struct
import zlib
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_double,
    c_int,
    c_size_t,
    c_uint8,
    c_uint32,
    c_void_p,
)
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

OK, BAD_ARGUMENT, NO_MEMORY, BAD_FILE, BAD_BUNDLE = range(5)
BAD_IMAGE, SMALL_BUFFER, BAD_FEATURE_FILE, OTHER_BUNDLE, SMALL_BUDGET = range(5, 10)


class CError(Exception):
    """A status other than OK, and its text."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class BundleInfo(ctypes.Structure):
    """edgecloud_bundle_info."""

    _fields_ = (
        ("fingerprint", c_uint8 * 32),
        *((name, c_uint32) for name in ("channels", "stride", "shrink", "max_symbols")),
        *((name, c_uint32) for name in ("resize", "crop")),
        ("small", c_int),
        ("has_encoder", c_int),
    )


class FileInfo(ctypes.Structure):
    """edgecloud_file_info."""

    _fields_ = (
        ("fingerprint", c_uint8 * 4),
        *((name, c_uint32) for name in ("version", "height", "width")),
        *((name, c_int) for name in ("small", "step", "kept")),
        ("payload_bytes", c_size_t),
    )


class _Options(ctypes.Structure):
    _fields_ = (("threads", c_int), ("profile", c_int), ("kernel", c_char_p))


class _Budget(ctypes.Structure):
    _fields_ = (
        ("has_rate", c_int),
        ("rate", c_double),
        ("max_bytes", c_size_t),
        ("target_bytes", c_double),
    )


class CLibrary:
    """The shared library; its functions raise CError."""

    def __init__(self, path: Path):
        self.functions = ctypes.CDLL(str(path))
        self.functions.edgecloud_version.restype = c_char_p
        self.functions.edgecloud_encoder_kernel.restype = c_char_p
        self.functions.edgecloud_max_file_bytes.restype = c_size_t

    def call(self, name: str, *arguments: object) -> None:
        """Call a function that gives a status, with a place for its error."""
        error = ctypes.create_string_buffer(256)
        status = getattr(self.functions, f"edgecloud_{name}")(*arguments, error)
        if status != OK:
            raise CError(status, error.value.decode())
        assert error.value == b""

    def open(self, folder: Path) -> "CBundle":
        handle = c_void_p()
        self.call("bundle_open", str(folder).encode(), byref(handle))
        return CBundle(self, handle)

    def from_memory(self, tables: bytes, weights: bytes = b"") -> "CBundle":
        handle = c_void_p()
        self.call(
            "bundle_from_memory",
            tables,
            c_size_t(len(tables)),
            weights or None,
            c_size_t(len(weights)),
            byref(handle),
        )
        return CBundle(self, handle)

    def parse(self, data: bytes) -> FileInfo:
        info = FileInfo()
        self.call("file_parse", data, c_size_t(len(data)), byref(info))
        return info


class CBundle:
    """An open bundle."""

    def __init__(self, api: CLibrary, handle: c_void_p):
        self.api, self.handle = api, handle
        self.info = BundleInfo()
        api.functions.edgecloud_bundle_describe(handle, byref(self.info))

    def close(self) -> None:
        self.api.functions.edgecloud_bundle_close(self.handle)

    def encoder(self, threads: int = 0, profile: int = 0, kernel: str | None = None) -> "CEncoder":
        options = _Options(threads, profile, kernel.encode() if kernel else None)
        handle = c_void_p()
        self.api.call("encoder_new", self.handle, byref(options), byref(handle))
        return CEncoder(self.api, handle)

    @property
    def has_rates(self) -> bool:
        return bool(self.api.functions.edgecloud_bundle_has_rates(self.handle))

    def prepare(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and crop uint8 [H, W, 3], whose rows may lie apart."""
        out = np.zeros((self.info.crop, self.info.crop, 3), np.uint8)
        self.api.call("prepare", self.handle, *_view(image), out.ctypes.data_as(c_void_p))
        return out

    def decode(self, data: bytes) -> NDArray[np.int16]:
        """A feature file to symbols int16 [C, rows, columns]."""
        rows, columns = c_uint32(), c_uint32()
        symbols = np.zeros(self.info.max_symbols, np.int16)
        self.api.call(
            "decode",
            self.handle,
            data,
            c_size_t(len(data)),
            symbols.ctypes.data_as(c_void_p),
            c_size_t(symbols.size),
            byref(rows),
            byref(columns),
        )
        shape = (self.info.channels, rows.value, columns.value)
        return symbols[: np.prod(shape)].reshape(shape)


class CEncoder:
    """An encoder of a bundle."""

    def __init__(self, api: CLibrary, handle: c_void_p):
        self.api, self.handle = api, handle

    @property
    def kernel(self) -> str:
        name: bytes = self.api.functions.edgecloud_encoder_kernel(self.handle)
        return name.decode()

    def ask(
        self, rate: float | None = None, max_bytes: int = 0, target_bytes: float = 0
    ) -> "CEncoder":
        """Ask for a level, or for bytes, of the next images; gives the encoder."""
        budget = _Budget(rate is not None, rate or 0, max_bytes, target_bytes)
        self.api.call("encoder_ask", self.handle, byref(budget))
        return self

    def encode(self, pixels: NDArray[np.uint8]) -> bytes:
        """Pixels uint8 [H, W, 3] to a feature file."""
        file, size = POINTER(c_uint8)(), c_size_t()
        self.api.call("encode", self.handle, *_view(pixels), byref(file), byref(size))
        return ctypes.string_at(file, size.value)

    def close(self) -> None:
        self.api.functions.edgecloud_encoder_free(self.handle)


def _view(image: NDArray[np.uint8]) -> tuple[c_void_p, c_size_t, c_size_t, c_size_t]:
    height, width = image.shape[:2]
    assert image.strides[1:] == (3, 1)
    return (
        image.ctypes.data_as(c_void_p),
        c_size_t(height),
        c_size_t(width),
        c_size_t(image.strides[0]),
    )


def with_checksum(file: bytes, at: int, value: bytes) -> bytes:
    """A feature file, or edge.tables, with other bytes at a place, and a checksum that fits."""
    body = file[:at] + value + file[at + len(value) : -4]
    return body + struct.pack("<I", zlib.crc32(body))
