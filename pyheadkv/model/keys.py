"""GGUF keys, as somebody else has parsed them into a dict: numbers and lists, checked, with llama.cpp's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from pyheadkv.errors import ModelError

Metadata = Mapping[str, object]

MAX_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS


def text(metadata: Metadata, key: str, default: str | None = None) -> str:
    """A string; without a default it must be there, and have a letter.

    Raises
    ------
    ModelError
        naming the key, its value and what was expected, as all of this module
    """
    value = metadata.get(key, default)
    if value is None:
        raise ModelError(f"{key} is missing, expected a string")
    if not isinstance(value, str) or (value == "" and default is None):
        raise ModelError(f"{key} is {short(value)}, expected a string")
    return value


def count(metadata: Metadata, key: str, default: int | None = None) -> int:
    """A whole number of at least 0."""
    value = metadata.get(key, default)
    if value is None:
        raise ModelError(f"{key} is missing, expected a whole number")
    if not _is_count(value):
        raise ModelError(f"{key} is {short(value)}, expected a whole number of at least 0")
    return value


def positive(metadata: Metadata, key: str, default: int | None = None) -> int:
    """A whole number of at least 1."""
    value = count(metadata, key, default)
    if value == 0:
        raise ModelError(f"{key} is 0, expected at least 1")
    return value


def per_layer(metadata: Metadata, key: str, n_block: int, default: list[int] | None = None) -> list[int]:
    """Whole numbers of at least 0, one for each layer: a list, or one number for all."""
    value = metadata.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, (list, tuple)):
        return [count(metadata, key)] * n_block
    if len(value) != n_block:
        raise ModelError(f"{key} has {len(value)} values, expected {n_block}, one for each layer")
    for il, item in enumerate(value):
        if not _is_count(item):
            raise ModelError(f"{key} is {short(item)} in layer {il}, expected a whole number of at least 0")
    return list(value)


def flags(metadata: Metadata, key: str, n_block: int) -> list[bool] | None:
    """Yes or no for each layer, as booleans or numbers; None where there is no list."""
    value = metadata.get(key)
    if not isinstance(value, (list, tuple)):
        return None
    if len(value) != n_block or not all(isinstance(item, int) for item in value):
        raise ModelError(f"{key} is {short(value)}, expected {n_block} booleans, one for each layer")
    return [bool(item) for item in value]


def layer_count(metadata: Metadata, arch: str) -> tuple[int, int]:
    """Layers of a model, and how often a token passes them.

    Raises
    ------
    ModelError
        none, or more than llama.cpp has room for, which ends the process
    """
    n_loops = positive(metadata, f"{arch}.num_loops", 1) if arch == "nanbeige" else 1
    n_block = positive(metadata, f"{arch}.block_count")
    if n_block * n_loops > MAX_LAYERS:
        passed = f" and {arch}.num_loops {n_loops}" if n_loops > 1 else ""
        raise ModelError(f"{arch}.block_count is {n_block}{passed}, expected at most {MAX_LAYERS} layers")
    return n_block, n_loops


def trunk_count(metadata: Metadata, arch: str) -> int:
    """Layers that compute the next token: the last ones of a model may only draft, without rows in its cache."""
    n_block, _ = layer_count(metadata, arch)
    n_nextn = count(metadata, f"{arch}.nextn_predict_layers", 0)
    return n_block - n_nextn if n_nextn < n_block else n_block


def short(value: object) -> str:
    """A value in at most 40 characters."""
    words = repr(value)
    return words if len(words) <= 40 else words[:37] + "..."


def _is_count(value: object) -> TypeGuard[int]:
    # bool is an int in Python, but not in GGUF
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
