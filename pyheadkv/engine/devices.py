"""What llama.cpp can compute on here, and what its CPU code was built for."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from pyheadkv.engine.library import ggml
from pyheadkv.engine.native import llama_bindings


@dataclass(frozen=True)
class Device:
    """A device of ggml's; bytes are 0 where it does not tell."""

    name: str
    description: str
    bytes_free: int
    bytes_total: int


def devices() -> list[Device]:
    """All devices, the CPU among them.

    Raises
    ------
    LibraryError
        the native library is missing
    """
    llama_bindings().llama_backend_init()
    lib = ggml()
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.restype = ctypes.c_void_p
    lib.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    return [_device(lib, lib.ggml_backend_dev_get(i)) for i in range(lib.ggml_backend_dev_count())]


def _device(lib: Any, device: int) -> Device:
    for function in (lib.ggml_backend_dev_name, lib.ggml_backend_dev_description):
        function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    n_free, n_total = ctypes.c_size_t(), ctypes.c_size_t()
    pointer = ctypes.c_void_p(device)
    lib.ggml_backend_dev_memory(pointer, ctypes.byref(n_free), ctypes.byref(n_total))
    name, description = (
        function(pointer).decode(errors="replace").strip()
        for function in (lib.ggml_backend_dev_name, lib.ggml_backend_dev_description)
    )
    return Device(name, description, n_free.value, n_total.value)


def system_info() -> str:
    """llama.cpp's own line about its build: instruction sets, kernels.

    Raises
    ------
    LibraryError
        the native library is missing
    """
    text: bytes = llama_bindings().llama_print_system_info()
    return text.decode(errors="replace").strip(" |")
