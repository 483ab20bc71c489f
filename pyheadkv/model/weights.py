"""Which types the weights of a model file have, and whether this machine reads prompts slowly with them."""

from __future__ import annotations

import math
import platform
from collections import Counter
from pathlib import Path

import gguf

from pyheadkv.model.gguf_header import open_header, split_paths

_X86 = ("x86_64", "amd64", "i386", "i686")
# that ggml of the pinned llama.cpp multiplies many tokens at once with on x86: repack.cpp, llamafile/sgemm.cpp
_FAST_ON_X86 = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "IQ4_NL", "Q2_K", "Q4_K")
_MANY = 0.5  # Q4_K_M has some tensors of Q6_K, and reads fast


def weight_types(path: str | Path) -> dict[str, float]:
    """Share of the weights that has each ggml type, the largest first; of a split model, in this part.

    Raises
    ------
    ModelError
        the file cannot be read
    """
    sizes: Counter[str] = Counter()
    with open_header(path) as header:
        for tensor in header.tensors:
            sizes[_name(tensor.ggml_type)] += math.prod(tensor.dims)
    return {name: size / sizes.total() for name, size in sizes.most_common() if size}


def file_bytes(path: str | Path) -> int:
    """Bytes of a model's file, of a split model of all parts.

    Raises
    ------
    ModelError
        the file cannot be read, or a part is missing
    """
    with open_header(path) as header:
        return sum(part.stat().st_size for part in split_paths(header))


def slow_weights_note(types: dict[str, float], machine: str = "") -> str | None:
    """One line where most weights have types without a fast matrix kernel; None where all is well.

    Parameters
    ----------
    types
        as `weight_types` gives them
    machine
        by default this one, as ``platform.machine()`` names it
    """
    slow = {name: share for name, share in types.items() if name not in _FAST_ON_X86}
    if (machine or platform.machine()).lower() not in _X86 or sum(slow.values()) <= _MANY:
        return None
    return (
        f"{', '.join(slow)} has no fast matrix kernel on this machine: without a GPU, prompts are read at about half "
        "the speed of Q8_0, Q4_0 or Q4_K_M"
    )


def _name(ggml_type: int) -> str:
    try:
        return gguf.GGMLQuantizationType(ggml_type).name
    except ValueError:
        return f"type {ggml_type}"
