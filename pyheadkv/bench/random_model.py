"""Models with random weights, written as GGUF files: what they say means nothing, and what they cost is real.

A `RandomModel` is a llama (qwen2 where it has biases, deci where layers differ) whose weights depend on the description
alone. GGUF v3, matrices in torch order [out, in] and of any type that gguf-py can quantise, norms and biases F32:

    token_embd.weight [n_vocab, n_embd]      blk.N.attn_q.weight      [n_head * head_size, n_embd]    and .bias
    output.weight     [n_vocab, n_embd]      blk.N.attn_k / attn_v    [n_head_kv * head_size, n_embd] and .bias
    output_norm       [n_embd]               blk.N.attn_output        [n_embd, n_head * head_size]
                                             blk.N.ffn_gate / ffn_up  [n_ff, n_embd]
                                             blk.N.ffn_down           [n_embd, n_ff]
                                             blk.N.attn_norm / ffn_norm [n_embd]

Metadata are the keys of the architecture and `tokenizer.ggml.model = no_vocab`: token ids only, no words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Tensor = tuple[str, npt.NDArray[np.float32]]

# spread of q and k elements: logits then have a standard deviation of about 2, so that attention is neither uniform nor
# on one position, and losing the wrong row changes the answer
_QK_SCALE = 1.5


@dataclass(frozen=True)
class RandomModel:
    """Shape and seed; n_head and n_head_kv of each layer."""

    n_head: tuple[int, ...]
    n_head_kv: tuple[int, ...]
    head_size: int
    n_embd: int
    n_ff: int
    n_vocab: int
    n_ctx: int
    seed: int = 0
    has_bias: bool = False

    @property
    def n_layer(self) -> int:
        """Layers, all with a cache."""
        return len(self.n_head)

    @property
    def is_equal(self) -> bool:
        """Whether all layers have the same heads."""
        return len({*zip(self.n_head, self.n_head_kv, strict=True)}) == 1

    @property
    def arch(self) -> str:
        """The architecture's name in llama.cpp."""
        if self.has_bias:
            return "qwen2"
        return "llama" if self.is_equal else "deci"


def make_weights(model: RandomModel) -> Iterator[Tensor]:
    """All tensors by their GGUF names, f32, one at a time."""
    rng = np.random.default_rng(model.seed)
    for name, (shape, scale) in _tensors(model).items():
        is_norm = len(shape) == 1 and scale == 0
        values = rng.uniform(0.8, 1.2, shape) if is_norm else rng.normal(scale=scale / math.sqrt(shape[-1]), size=shape)
        yield name, values.astype(np.float32)


def _tensors(model: RandomModel) -> dict[str, tuple[tuple[int, ...], float]]:
    """Name -> shape in torch order, and the spread of an output for inputs of spread 1; 0 is a norm."""
    n_embd, n_ff, d = model.n_embd, model.n_ff, model.head_size
    norm = ((n_embd,), 0.0)
    tensors: dict[str, tuple[tuple[int, ...], float]] = {
        "token_embd.weight": ((model.n_vocab, n_embd), math.sqrt(n_embd)),
        "output_norm.weight": norm,
        "output.weight": ((model.n_vocab, n_embd), 1.0),
    }
    for il, (n_head, n_head_kv) in enumerate(zip(model.n_head, model.n_head_kv, strict=True)):
        biases: dict[str, tuple[tuple[int, ...], float]] = {
            f"blk.{il}.attn_{name}.bias": ((n * d,), 1.0)
            for name, n in (("q", n_head), ("k", n_head_kv), ("v", n_head_kv))
        }
        tensors |= {
            f"blk.{il}.attn_norm.weight": norm,
            f"blk.{il}.attn_q.weight": ((n_head * d, n_embd), _QK_SCALE),
            f"blk.{il}.attn_k.weight": ((n_head_kv * d, n_embd), _QK_SCALE),
            f"blk.{il}.attn_v.weight": ((n_head_kv * d, n_embd), 1.0),
            f"blk.{il}.attn_output.weight": ((n_embd, n_head * d), 2.0),
            f"blk.{il}.ffn_norm.weight": norm,
            f"blk.{il}.ffn_gate.weight": ((n_ff, n_embd), 1.0),
            f"blk.{il}.ffn_up.weight": ((n_ff, n_embd), 1.0),
            f"blk.{il}.ffn_down.weight": ((n_embd, n_ff), 1.0),
        } | (biases if model.has_bias else {})
    return tensors


def write_model(
    path: Path,
    model: RandomModel,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    *,
    kinds: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    name: str = "random",
    weights: Iterable[Tensor] | None = None,
) -> Path:
    """Write a model, one tensor in memory at a time.

    Parameters
    ----------
    kind
        type of the matrices
    kinds
        other types of single tensors, by their names
    name
        goes into the file
    weights
        instead of the model's own: tensors of the same names and shapes, in the same order

    Raises
    ------
    OSError
        there is no room
    """
    writer = gguf.GGUFWriter(path, model.arch)
    writer.add_name(name)
    writer.add_block_count(model.n_layer)
    writer.add_context_length(model.n_ctx)
    writer.add_embedding_length(model.n_embd)
    writer.add_feed_forward_length(model.n_ff)
    writer.add_vocab_size(model.n_vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_head_count(model.n_head[0] if model.is_equal else model.n_head)
    writer.add_head_count_kv(model.n_head_kv[0] if model.is_equal else model.n_head_kv)
    writer.add_key_length(model.head_size)
    writer.add_value_length(model.head_size)
    writer.add_rope_dimension_count(model.head_size)
    writer.add_layer_norm_rms_eps(1e-5)
    f32 = gguf.GGMLQuantizationType.F32
    kinds = {name: kind if len(shape) > 1 else f32 for name, (shape, _) in _tensors(model).items()} | dict(kinds or {})
    for tensor, (shape, _) in _tensors(model).items():
        elems, n_bytes = gguf.GGML_QUANT_SIZES[kinds[tensor]]
        writer.add_tensor_info(tensor, shape, np.dtype(np.float32), math.prod(shape) // elems * n_bytes, kinds[tensor])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, values in weights or make_weights(model):
            writer.write_tensor_data(gguf.quantize(values, kinds[tensor]))
    finally:
        writer.close()
    return path
