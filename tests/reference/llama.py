"""A llama in NumPy, float64: RMSNorm, rotary positions on neighbouring pairs, grouped-query attention, SwiGLU.

What a compressed cache does is written down here as a mask: tokens from position `n_pos` on see, of the prefix
[0, n_prefix), only the positions that their KV head kept; every earlier token saw everything before it.

    keys ->   0 ... n_prefix | n_prefix ... n_pos | n_pos ...
    prompt    causal           causal
    later     kept[il][ih]     all                  causal
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tests.reference.attention import Array, Mask, attention
from tests.tiny import Tiny, Weights

Kept = Sequence[Sequence[npt.ArrayLike]]  # [n_layer][n_head_kv] positions

ROPE_BASE = 10000.0
NORM_EPS = 1e-5


@dataclass(frozen=True)
class Compressed:
    """What a cache holds that was compressed when it had n_pos positions."""

    n_pos: int
    n_prefix: int
    kept: Kept


@dataclass(frozen=True)
class Forward:
    """Logits [n, n_vocab]; of each layer queries and keys after rotation, values, and queries before rotation.

    Queries are [n, n_head, d], keys and values [n, n_head_kv, d].
    """

    logits: Array
    q: list[Array]
    k: list[Array]
    v: list[Array]
    q_before_rope: list[Array]


def forward(
    tiny: Tiny, weights: Weights, tokens: npt.ArrayLike, compressed: Compressed | None = None, *, is_f16: bool = False
) -> Forward:
    """Evaluate tokens from position 0 on.

    Parameters
    ----------
    tokens
        int [n]
    compressed
        None: everything is visible
    is_f16
        K and V are rounded to f16, as an f16 cache does
    """
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    ids = np.asarray(tokens)
    x = w["token_embd"][ids]
    queries, keys, values, plain_queries = [], [], [], []
    for il in range(tiny.n_layer):
        h = norm(x, w[f"blk.{il}.attn_norm"])
        q, k, v = (heads(h @ w[f"blk.{il}.attn_{name}"].T, tiny.head_size) for name in "qkv")
        plain_queries.append(q)
        q, k = rotate(q), rotate(k)
        if is_f16:
            k, v = round_f16(k), round_f16(v)
        queries.append(q)
        keys.append(k)
        values.append(v)
        out = attention(q, k, v, visible_keys(len(ids), tiny.n_head_kv[il], il, compressed))
        x = x + out.reshape(len(ids), -1) @ w[f"blk.{il}.attn_output"].T
        h = norm(x, w[f"blk.{il}.ffn_norm"])
        gate = h @ w[f"blk.{il}.ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w[f"blk.{il}.ffn_up"].T)) @ w[f"blk.{il}.ffn_down"].T
    return Forward(norm(x, w["output_norm"]) @ w["output"].T, queries, keys, values, plain_queries)


def visible_keys(n: int, n_head_kv: int, il: int, compressed: Compressed | None) -> Mask:
    """Which keys each query sees, [n_head_kv, n, n]."""
    visible = np.tile(np.tril(np.ones((n, n), dtype=bool)), (n_head_kv, 1, 1))
    if compressed is not None:
        visible[:, compressed.n_pos :, : compressed.n_prefix] = False
        for ih in range(n_head_kv):
            visible[ih, compressed.n_pos :, np.asarray(compressed.kept[il][ih], dtype=int)] = True
    return visible


def heads(x: Array, head_size: int) -> Array:
    """[n, n_head * d] -> [n, n_head, d]."""
    return x.reshape(len(x), -1, head_size)


def norm(x: Array, weight: Array) -> Array:
    """RMSNorm of the last axis."""
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + NORM_EPS) * weight


def rotate(x: Array) -> Array:
    """Rotary position embedding of [n, n_head, d]: the pair (2i, 2i + 1) turns by position * base ** (-2i / d)."""
    n, _, d = x.shape
    angle = np.arange(n)[:, None] * ROPE_BASE ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle)[:, None, :], np.sin(angle)[:, None, :]
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)


def round_f16(x: Array) -> Array:
    """Nearest f16 values, in float64."""
    return x.astype(np.float16).astype(np.float64)
