"""Tiny models with random weights, written as GGUF files at test time.

`Tiny` is a `RandomModel` whose weights depend on the description alone, so that the NumPy reference computes with the
same numbers that the file holds. `write_refused` writes the smallest files of architectures that cannot be compressed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from pyheadkv.bench import random_model
from pyheadkv.bench.random_model import RandomModel

Weights = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Tiny(RandomModel):
    """Shape and seed of a tiny llama."""

    n_head: tuple[int, ...] = (4, 4)
    n_head_kv: tuple[int, ...] = (2, 2)
    head_size: int = 64
    n_embd: int = 32
    n_ff: int = 48
    n_vocab: int = 64
    n_ctx: int = 4096


def make_weights(tiny: Tiny) -> Weights:
    """All tensors by their GGUF names without ".weight", f32."""
    return {name.removesuffix(".weight"): values for name, values in random_model.make_weights(tiny)}


def write_tiny(
    path: Path,
    tiny: Tiny,
    weights: Weights | None = None,
    types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Write the model, with other weights than its own if given, and some tensors in other types than F32."""
    own = ((f"{name}.weight", values) for name, values in (weights or make_weights(tiny)).items())
    kinds = {f"{name}.weight": kind for name, kind in (types or {}).items()}
    return random_model.write_model(path, tiny, kinds=kinds, name="tiny", weights=own)


def _add_sizes(writer: gguf.GGUFWriter, n_layer: int, n_embd: int, n_ff: int, n_vocab: int, n_ctx: int) -> None:
    writer.add_block_count(n_layer)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_vocab_size(n_vocab)
    writer.add_tokenizer_model("no_vocab")


def _close(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# ---- architectures that cannot be compressed; E = n_embd, F = n_ff, V = n_vocab, two heads, one layer ----

E, F, V, D = 64, 64, 64, 32
_Shapes = dict[str, tuple[int, ...]]


def _refused_bloom(writer: gguf.GGUFWriter) -> _Shapes:
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-5)
    layer: _Shapes = {
        "attn_norm": (E,),
        "attn_qkv": (3 * E, E),
        "attn_output": (E, E),
        "ffn_norm": (E,),
        "ffn_up": (F, E),
        "ffn_down": (E, F),
    }
    shapes: _Shapes = {f"blk.0.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {f"{name}.weight": (E,) for name in ("token_embd_norm", "output_norm")}
    biases: _Shapes = {name.replace(".weight", ".bias"): shape[:1] for name, shape in shapes.items()}
    return shapes | biases


def _refused_gemma3(writer: gguf.GGUFWriter) -> _Shapes:
    writer.add_sliding_window(64)
    writer.add_head_count_kv(1)
    return _grouped_query_shapes(writer) | {
        "blk.0.post_attention_norm.weight": (E,),
        "blk.0.attn_k_norm.weight": (D,),
        "blk.0.attn_q_norm.weight": (D,),
        "blk.0.post_ffw_norm.weight": (E,),
    }


def _grouped_query_shapes(writer: gguf.GGUFWriter) -> _Shapes:
    writer.add_head_count(2)
    writer.add_key_length(D)
    writer.add_value_length(D)
    writer.add_layer_norm_rms_eps(1e-5)
    return {
        "output_norm.weight": (E,),
        "blk.0.attn_norm.weight": (E,),
        "blk.0.attn_q.weight": (2 * D, E),
        "blk.0.attn_k.weight": (D, E),
        "blk.0.attn_v.weight": (D, E),
        "blk.0.attn_output.weight": (E, 2 * D),
        "blk.0.ffn_norm.weight": (E,),
        "blk.0.ffn_gate.weight": (F, E),
        "blk.0.ffn_up.weight": (F, E),
        "blk.0.ffn_down.weight": (E, F),
    }


def _refused_mamba(writer: gguf.GGUFWriter) -> _Shapes:
    n_conv, n_inner, n_state, dt_rank = 4, 2 * E, 16, 4
    writer.add_ssm_conv_kernel(n_conv)
    writer.add_ssm_inner_size(n_inner)
    writer.add_ssm_state_size(n_state)
    writer.add_ssm_time_step_rank(dt_rank)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(1e-5)
    return {
        "output_norm.weight": (E,),
        "blk.0.attn_norm.weight": (E,),
        "blk.0.ssm_in.weight": (2 * n_inner, E),
        "blk.0.ssm_conv1d.weight": (n_inner, n_conv),
        "blk.0.ssm_conv1d.bias": (n_inner,),
        "blk.0.ssm_x.weight": (dt_rank + 2 * n_state, n_inner),
        "blk.0.ssm_dt.weight": (n_inner, dt_rank),
        "blk.0.ssm_dt.bias": (n_inner,),
        "blk.0.ssm_a": (n_inner, n_state),
        "blk.0.ssm_d": (n_inner,),
        "blk.0.ssm_out.weight": (E, n_inner),
    }


def _refused_deepseek2(writer: gguf.GGUFWriter) -> _Shapes:
    rank, n_rot, n_embd_head = 32, 16, 16
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_leading_dense_block_count(1)
    writer.add_kv_lora_rank(rank)
    writer.add_q_lora_rank(rank)
    writer.add_key_length(rank + n_rot)
    writer.add_value_length(rank)
    writer.add_key_length_mla(n_embd_head + n_rot)
    writer.add_value_length_mla(n_embd_head)
    writer.add_rope_dimension_count(n_rot)
    writer.add_expert_feed_forward_length(F)
    writer.add_expert_shared_count(1)
    return {
        "output_norm.weight": (E,),
        "output.weight": (V, E),
        "blk.0.attn_norm.weight": (E,),
        "blk.0.attn_q_a.weight": (rank, E),
        "blk.0.attn_q_a_norm.weight": (rank,),
        "blk.0.attn_q_b.weight": (2 * (n_embd_head + n_rot), rank),
        "blk.0.attn_kv_a_mqa.weight": (rank + n_rot, E),
        "blk.0.attn_kv_a_norm.weight": (rank,),
        "blk.0.attn_k_b.weight": (2, rank, n_embd_head),
        "blk.0.attn_v_b.weight": (2, n_embd_head, rank),
        "blk.0.attn_output.weight": (E, 2 * n_embd_head),
        "blk.0.ffn_norm.weight": (E,),
        "blk.0.ffn_gate.weight": (F, E),
        "blk.0.ffn_up.weight": (F, E),
        "blk.0.ffn_down.weight": (E, F),
    }


_REFUSED: dict[str, Callable[[gguf.GGUFWriter], _Shapes]] = {
    "bloom": _refused_bloom,
    "deepseek2": _refused_deepseek2,
    "gemma3": _refused_gemma3,
    "mamba": _refused_mamba,
}
REFUSED = tuple(_REFUSED)


def write_refused(path: Path, arch: str) -> Path:
    """Write a model of an architecture in `REFUSED`: ALiBi, latent attention, sliding windows alone, recurrent."""
    writer = gguf.GGUFWriter(path, arch)
    _add_sizes(writer, 1, E, F, V, 1024)
    rng = np.random.default_rng(0)
    for name, shape in {"token_embd.weight": (V, E), **_REFUSED[arch](writer)}.items():
        writer.add_tensor(name, rng.normal(scale=0.1, size=shape).astype(np.float32))
    return _close(writer, path)
