"""Tiny models with random weights, written as GGUF files at test time.

`Tiny` describes a llama (or deci, where layers differ) whose weights depend on the description alone, so that the NumPy
reference computes with the same numbers that the file holds. GGUF v3, all tensors F32 in torch order [out, in]:

    token_embd.weight [n_vocab, n_embd]      blk.N.attn_q.weight      [n_head * head_size, n_embd]
    output.weight     [n_vocab, n_embd]      blk.N.attn_k / attn_v    [n_head_kv * head_size, n_embd]
    output_norm       [n_embd]               blk.N.attn_output        [n_embd, n_head * head_size]
                                             blk.N.ffn_gate / ffn_up  [n_ff, n_embd]
                                             blk.N.ffn_down           [n_embd, n_ff]
                                             blk.N.attn_norm / ffn_norm [n_embd]

Metadata are the keys of the architecture and `tokenizer.ggml.model = no_vocab`: token ids only, no words.
`write_refused` writes the smallest files of architectures that cannot be compressed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Weights = dict[str, npt.NDArray[np.float32]]

# spread of q and k elements: logits then have a standard deviation of about 2, so that attention is neither uniform nor
# on one position, and losing the wrong row changes the answer
_QK_SCALE = 1.5


@dataclass(frozen=True)
class Tiny:
    """Shape and seed of a tiny llama; n_head and n_head_kv of each layer."""

    n_head: tuple[int, ...] = (4, 4)
    n_head_kv: tuple[int, ...] = (2, 2)
    head_size: int = 64
    n_embd: int = 32
    n_ff: int = 48
    n_vocab: int = 64
    n_ctx: int = 4096
    seed: int = 0

    @property
    def n_layer(self) -> int:
        """Layers, all with a cache."""
        return len(self.n_head)

    @property
    def arch(self) -> str:
        """Llama, or deci where layers have different numbers of heads."""
        return "llama" if len({*zip(self.n_head, self.n_head_kv, strict=True)}) == 1 else "deci"


def make_weights(tiny: Tiny) -> Weights:
    """All tensors by their GGUF names without ".weight", f32."""
    rng = np.random.default_rng(tiny.seed)

    def matrix(n_out: int, n_in: int, scale: float = 1.0) -> npt.NDArray[np.float32]:
        return rng.normal(scale=scale / np.sqrt(n_in), size=(n_out, n_in)).astype(np.float32)

    def norm() -> npt.NDArray[np.float32]:
        return rng.uniform(0.8, 1.2, tiny.n_embd).astype(np.float32)

    n_embd, n_ff, d = tiny.n_embd, tiny.n_ff, tiny.head_size
    weights = {
        "token_embd": matrix(tiny.n_vocab, n_embd, np.sqrt(n_embd)),
        "output_norm": norm(),
        "output": matrix(tiny.n_vocab, n_embd),
    }
    for il, (n_head, n_head_kv) in enumerate(zip(tiny.n_head, tiny.n_head_kv, strict=True)):
        weights |= {
            f"blk.{il}.attn_norm": norm(),
            f"blk.{il}.attn_q": matrix(n_head * d, n_embd, _QK_SCALE),
            f"blk.{il}.attn_k": matrix(n_head_kv * d, n_embd, _QK_SCALE),
            f"blk.{il}.attn_v": matrix(n_head_kv * d, n_embd),
            f"blk.{il}.attn_output": matrix(n_embd, n_head * d, 2.0),
            f"blk.{il}.ffn_norm": norm(),
            f"blk.{il}.ffn_gate": matrix(n_ff, n_embd),
            f"blk.{il}.ffn_up": matrix(n_ff, n_embd),
            f"blk.{il}.ffn_down": matrix(n_embd, n_ff),
        }
    return weights


def write_tiny(
    path: Path,
    tiny: Tiny,
    weights: Weights | None = None,
    types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> Path:
    """Write the model, with other weights than its own if given, and some tensors in other types than F32."""
    writer = gguf.GGUFWriter(path, tiny.arch)
    writer.add_name("tiny")
    _add_sizes(writer, tiny.n_layer, tiny.n_embd, tiny.n_ff, tiny.n_vocab, tiny.n_ctx)
    is_equal = tiny.arch == "llama"
    writer.add_head_count(tiny.n_head[0] if is_equal else tiny.n_head)
    writer.add_head_count_kv(tiny.n_head_kv[0] if is_equal else tiny.n_head_kv)
    writer.add_key_length(tiny.head_size)
    writer.add_value_length(tiny.head_size)
    writer.add_rope_dimension_count(tiny.head_size)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, values in (weights or make_weights(tiny)).items():
        kind = (types or {}).get(name, gguf.GGMLQuantizationType.F32)
        writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    return _close(writer, path)


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


def _refused_qwen2vl(writer: gguf.GGUFWriter) -> _Shapes:
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_sections([4, 6, 6, 0])
    return _grouped_query_shapes(writer) | {
        "blk.0.attn_q.bias": (2 * D,),
        "blk.0.attn_k.bias": (D,),
        "blk.0.attn_v.bias": (D,),
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


_REFUSED: dict[str, Callable[[gguf.GGUFWriter], _Shapes]] = {
    "bloom": _refused_bloom,
    "gemma3": _refused_gemma3,
    "mamba": _refused_mamba,
    "qwen2vl": _refused_qwen2vl,
}
REFUSED = tuple(_REFUSED)


def write_refused(path: Path, arch: str) -> Path:
    """Write a model of an architecture in `REFUSED`: ALiBi, sliding window, recurrent, M-RoPE."""
    writer = gguf.GGUFWriter(path, arch)
    _add_sizes(writer, 1, E, F, V, 1024)
    rng = np.random.default_rng(0)
    for name, shape in {"token_embd.weight": (V, E), **_REFUSED[arch](writer)}.items():
        writer.add_tensor(name, rng.normal(scale=0.1, size=shape).astype(np.float32))
    return _close(writer, path)
