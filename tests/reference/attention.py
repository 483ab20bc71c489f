"""Grouped-query attention and the scores of an observation window, in NumPy: the truth that the kernels are held to.

Query head h belongs to KV head h // (n_head / n_head_kv). Everything is computed in the type that comes in.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def attention_weights(q: Array, k: Array, visible: Mask) -> Array:
    """Softmax attention.

    Parameters
    ----------
    q
        [n_q, n_head, d]
    k
        [n_k, n_head_kv, d]
    visible
        [n_head_kv, n_q, n_k], at least one key of each query is visible

    Returns
    -------
    [n_head, n_q, n_k], each row sums to 1
    """
    n_gqa = q.shape[1] // k.shape[1]
    logits = by_head(q) @ by_head(k).repeat(n_gqa, axis=0).swapaxes(1, 2) / np.sqrt(q.shape[2])
    logits = np.where(np.repeat(visible, n_gqa, axis=0), logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    return weights / weights.sum(axis=2, keepdims=True)


def attention(q: Array, k: Array, v: Array, visible: Mask) -> Array:
    """Output of attention, [n_q, n_head, d]; v is [n_k, n_head_kv, d], the rest as in `attention_weights`."""
    n_gqa = q.shape[1] // k.shape[1]
    return by_head(attention_weights(q, k, visible) @ by_head(v).repeat(n_gqa, axis=0))


def by_head(x: Array) -> Array:
    """[n, n_head, d] -> [n_head, n, d], and back."""
    return x.swapaxes(0, 1)


def window_attention(q: Array, k: Array, n_obs: int, reduce: str = "mean") -> Array:
    """Mean or maximum attention of the last n_obs queries to the positions before them, [n_head, n_pos - n_obs].

    q is [n_pos, n_head, d], k [n_pos, n_head_kv, d]. The softmax goes over the window's own rows too.
    """
    n_pos = len(k)
    causal = np.arange(n_pos)[None, :] <= np.arange(n_pos - n_obs, n_pos)[:, None]
    weights = attention_weights(q[n_pos - n_obs :], k, np.broadcast_to(causal, (k.shape[1], *causal.shape)))
    reduced = weights.mean(axis=1) if reduce == "mean" else weights.max(axis=1)
    return reduced[:, : n_pos - n_obs]
