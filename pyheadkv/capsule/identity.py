"""What the rows of a cache depend on beside its tokens: where that differs, rows of one are wrong in the other."""

from __future__ import annotations

import os
import re
from itertools import groupby
from pathlib import Path
from typing import Any

from pyheadkv.capsule.format import Header
from pyheadkv.engine.native import Native
from pyheadkv.errors import CapsuleError
from pyheadkv.model.fingerprint import fingerprint, weights_digest
from pyheadkv.model.gguf_header import open_header
from pyheadkv.model.shape import CACHE_TYPES

ROW_LAYOUT = "1"  # of the pinned llama.cpp; another number where a later one stores rows otherwise
_ROPE = (
    "rope_scaling_type",
    "rope_freq_base",
    "rope_freq_scale",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_orig_ctx",
)
_LONG_FACTORS = "rope_factors_long.weight"


def identity_of(llama: Any, native: Native) -> dict[str, str]:
    """All that must be equal, in words that a refusal can name.

    What it cannot tell apart: models that differ in weights between the samples of `weights_digest` alone, and builds
    and processors, whose rounding differs.

    Parameters
    ----------
    llama
        a llama_cpp.Llama

    Raises
    ------
    ModelError
        its file cannot be read any more
    CapsuleError
        an adapter is on it
    """
    if llama.lora_path:
        raise CapsuleError(f"rows of a model with an adapter ({llama.lora_path}) cannot be told from others")
    params, path = llama.context_params, llama.model_path
    types = [_type_name(int(ggml_type)) for ggml_type in (params.type_k, params.type_v)]
    cells = zip(native.layers(), native.cell_bytes(), strict=True)
    layers = groupby(f"{layer.n_head_kv} heads, {k} + {v} bytes" for layer, (k, v) in cells)
    return {
        "model": fingerprint(path),
        "weights": weights_digest(path),
        "overridden keys": ", ".join(f"{key}={value}" for key, value in sorted((llama.kv_overrides or {}).items())),
        "cache type of K": types[0],
        "cache type of V": types[1],
        "rotation of quantised rows": _rotation(types),
        "layers": "; ".join(f"{len([*same])} x {words}" for words, same in layers),
        "row layout": ROW_LAYOUT,
        "RoPE": ", ".join(f"{name} {getattr(params, name):g}" for name in _ROPE),
        "RoPE factors": _rope_factors(path, llama.n_ctx()),
    }


def check_identity(path: Path, header: Header, ours: Header) -> None:
    """Refuse a capsule whose rows would be wrong here.

    Raises
    ------
    CapsuleError
        naming both values of the first thing that differs
    """
    for what, value in ours.identity.items():
        theirs = header.identity.get(what, "unknown")
        if theirs != value:
            whose = f" ({header.model or 'a model without a name'}; here {ours.model or 'one without a name'})"
            raise CapsuleError(
                f"{path} does not fit: {what} is {theirs or 'none'} in it, {value or 'none'} here"
                + (whose if what in ("model", "weights") else "")
            )
    if list(header.cell_bytes) != list(ours.cell_bytes):
        raise CapsuleError(f"{path} does not fit: its rows have {header.cell_bytes} bytes, here {ours.cell_bytes}")


def _type_name(ggml_type: int) -> str:
    return next((it.name for it in CACHE_TYPES.values() if it.ggml_type == ggml_type), str(ggml_type))


def _rotation(types: list[str]) -> str:
    """Whether llama.cpp rotates what it quantises; "" where nothing is quantised."""
    if all(CACHE_TYPES[name].block_elems == 1 for name in types if name in CACHE_TYPES):
        return ""
    number = re.match(r"\s*[+-]?(\d+)", os.environ.get("LLAMA_ATTN_ROT_DISABLE", ""))  # as atoi reads it
    return "off" if number and int(number[1]) else "on"


def _rope_factors(path: str, n_ctx: int) -> str:
    """Which of its factors for short and long contexts a model takes; "" where it has none."""
    with open_header(path) as header:
        if not any(tensor.name.endswith(_LONG_FACTORS) for tensor in header.tensors):
            return ""
        metadata = header.metadata()
    arch = metadata.get("general.architecture")
    n_short = metadata.get(f"{arch}.rope.scaling.original_context_length", metadata.get(f"{arch}.context_length"))
    return "long" if isinstance(n_short, int) and n_ctx > n_short else "short"
