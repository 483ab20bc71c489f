"""Devices for the end-to-end tests: real ones, or the CPU behind memory of its own; and what leaves them.

Both are in tests/native (fake-device.cpp, count-traffic.cpp), a library that is built with the native tests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import pytest

from pyheadkv.engine.library import library_dir, prepare
from tests.conftest import ROOT

LIBRARY = ROOT / "build" / "release" / "tests" / "native" / "libtest-devices.so"
GPU = 1  # enum ggml_backend_dev_type
SPLIT_NONE, SPLIT_LAYER, SPLIT_TENSOR = 0, 1, 3  # enum llama_split_mode
REFUSE_NOTHING, REFUSE_PREFIX, REFUSE_ATTENTION = range(3)  # what a fake device cannot compute


class _Counted(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("n_graphs", "bytes_to_host", "bytes_between")]


@dataclass
class Traffic:
    """What backends did: graphs (one for each split), bytes to the host, bytes that no graph copied between devices."""

    n_graphs: int = 0
    bytes_to_host: int = 0
    bytes_between: int = 0
    names: str = ""


@cache
def _test_library() -> ctypes.CDLL:
    import llama_cpp  # noqa: F401  the ggml that is tested comes first

    if not LIBRARY.is_file():
        pytest.skip(f"no {LIBRARY.relative_to(ROOT)}: built with the native tests, not on Windows")
    library = ctypes.CDLL(str(LIBRARY))
    library.traffic_names.restype = ctypes.c_char_p
    return library


@cache
def _ggml() -> ctypes.CDLL:
    library = ctypes.CDLL(str(next(path for path in prepare().iterdir() if path.stem == "libggml")))
    library.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    library.ggml_backend_dev_get.restype = ctypes.c_void_p
    library.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    library.ggml_backend_dev_count.restype = ctypes.c_size_t
    return library


def n_devices() -> int:
    """GPUs, and emulated ones."""
    devices = (_ggml().ggml_backend_dev_get(i) for i in range(_ggml().ggml_backend_dev_count()))
    return sum(_ggml().ggml_backend_dev_type(ctypes.c_void_p(device)) == GPU for device in devices)


def has_device() -> bool:
    """Is there a GPU, or an emulated one?"""
    metal = next(library_dir().glob("libggml-metal.so"), None)
    if metal is not None:  # kernels of the emulation are libraries that look for its symbols
        ctypes.CDLL(str(metal), mode=ctypes.RTLD_GLOBAL)
    return _ggml().ggml_backend_dev_by_type(GPU) is not None


@contextmanager
def fake_devices(n: int = 1, name: str = "CUDA", refused: int = REFUSE_NOTHING) -> Iterator[None]:
    """`n` devices of a backend that says to be `name`, where there are no others."""
    library = _test_library()
    library.fake_devices_add(name.encode(), n, refused)
    library.traffic_watch()
    try:
        yield
    finally:
        library.fake_devices_remove()


def device_bytes() -> tuple[int, int]:
    """Of the memory of all fake devices: bytes in use, and the most since the last call."""
    now, peak = ctypes.c_size_t(), ctypes.c_size_t()
    _test_library().fake_devices_bytes(ctypes.byref(now), ctypes.byref(peak))
    return now.value, peak.value


def watch() -> None:
    """Count what the devices do that exist now, in contexts opened from now on."""
    _test_library().traffic_watch()


@contextmanager
def count_traffic() -> Iterator[Traffic]:
    """Filled when the block ends."""
    library, counted, traffic = _test_library(), _Counted(), Traffic()
    library.traffic_take(ctypes.byref(counted))
    yield traffic
    traffic.names = library.traffic_names().decode()
    library.traffic_take(ctypes.byref(counted))
    traffic.n_graphs, traffic.bytes_to_host = counted.n_graphs, counted.bytes_to_host
    traffic.bytes_between = counted.bytes_between
