"""Small GGUF files with tokens and typed keys, for tests that need no library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf

from tests.tiny import Tiny, Weights, make_weights

TINY = Tiny()
Change = Callable[[Weights], object]
TOKENS = ["<s>", "a", "b"]


def write_model(
    path: Path,
    tiny: Tiny = TINY,
    *,
    quantize: bool = False,
    change: Change | None = None,
    weights: Weights | None = None,
    tokens: list[str] = TOKENS,
    only: Callable[[int], bool] = lambda i: True,
    alignment: int = 0,
    **keys: object,
) -> Path:
    """Write a model whose weights depend on the description alone; `only` picks tensors by their number."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_block_count(tiny.n_layer)
    writer.add_context_length(tiny.n_ctx)
    writer.add_embedding_length(tiny.n_embd)
    writer.add_head_count(tiny.n_head[0])
    writer.add_head_count_kv(tiny.n_head_kv[0])
    writer.add_key_length(tiny.head_size)
    writer.add_value_length(tiny.head_size)
    writer.add_token_list(tokens)
    for key, value in keys.items():
        if isinstance(value, str):
            writer.add_string(key.replace("__", "."), value)
        else:
            writer.add_uint16(key.replace("__", "."), int(str(value)))
    weights = weights or make_weights(tiny)
    if change:
        change(weights)
    for i, (name, values) in enumerate(weights.items()):
        if only(i):
            kind = (
                gguf.GGMLQuantizationType.Q8_0 if quantize and values.ndim > 1 and values.shape[-1] % 32 == 0 else None
            )
            data = gguf.quantize(values, kind) if kind else values
            writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
