"""A tiny llama with random weights, written as a GGUF at test time; it has token ids only, no words."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

N_VOCAB = 256


def write_tiny_model(
    path: Path,
    *,
    n_layer: int = 2,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_size: int = 64,
    n_embd: int = 64,
    n_ctx: int = 2048,
    seed: int = 0,
) -> Path:
    """Write a model whose weights depend on the seed only."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(n_layer)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_embd)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, *shape: int) -> None:
        is_norm = len(shape) == 1
        # large enough that attention is far from uniform, so that losing the wrong rows changes the answer
        values = np.ones(shape) if is_norm else rng.normal(scale=2 / np.sqrt(shape[-1]), size=shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    add("token_embd", N_VOCAB, n_embd)
    add("output_norm", n_embd)
    add("output", N_VOCAB, n_embd)
    for il in range(n_layer):
        add(f"blk.{il}.attn_norm", n_embd)
        add(f"blk.{il}.attn_q", n_head * head_size, n_embd)
        add(f"blk.{il}.attn_k", n_head_kv * head_size, n_embd)
        add(f"blk.{il}.attn_v", n_head_kv * head_size, n_embd)
        add(f"blk.{il}.attn_output", n_embd, n_head * head_size)
        add(f"blk.{il}.ffn_norm", n_embd)
        add(f"blk.{il}.ffn_gate", n_embd, n_embd)
        add(f"blk.{il}.ffn_up", n_embd, n_embd)
        add(f"blk.{il}.ffn_down", n_embd, n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
