"""Scorers in NumPy: how much each position before the window is worth to each KV head, from the papers' formulas.

Arrays of one layer, in the type that comes in, positions first:

    q   [n_pos, n_head, d]       after RoPE unless said otherwise
    k   [n_pos, n_head_kv, d]    after RoPE, as cached
    v   [n_pos, n_head_kv, d_v]
    wo  [n_head, d_v, n_embd]    the block of the output projection that each query head goes through

Query head h belongs to KV head h // (n_head / n_head_kv). Every scorer gives [n_head_kv, n_pos - n_obs], higher = keep;
nothing is pooled unless the method itself says so. The window attention of SnapKV is in attention.py and select.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tests.reference.attention import Array, attention_weights
from tests.reference.select import fold_heads, pool_positions

FIRST = float(np.finfo(np.float32).max)  # the score of a position that is kept before any other


def causal_attention(q: Array, k: Array, n_last: int) -> Array:
    """Attention of the last `n_last` queries to all positions, [n_head, n_last, n_pos]."""
    n_pos = len(k)
    visible = np.arange(n_pos)[None, :] <= np.arange(n_pos - n_last, n_pos)[:, None]
    return attention_weights(q[n_pos - n_last :], k, np.broadcast_to(visible, (k.shape[1], *visible.shape)))


def h2o(q: Array, k: Array, n_obs: int) -> Array:
    """Attention received from all queries of the prompt, summed; mean over the group, https://arxiv.org/abs/2306.14048."""
    received = causal_attention(q, k, len(k)).sum(axis=1)
    return fold_heads(received, k.shape[1], "mean")[:, : len(k) - n_obs]


def tova(q: Array, k: Array, n_obs: int) -> Array:
    """Attention of the last query, mean over all heads of the layer: one row for all, https://arxiv.org/abs/2401.06104."""
    row = causal_attention(q, k, 1)[:, 0].mean(axis=0)[: len(k) - n_obs]
    return np.tile(row, (k.shape[1], 1))


def streaming(n_head_kv: int, n_before_window: int) -> Array:
    """Later is better; sinks are the policy's, https://arxiv.org/abs/2309.17453."""
    return np.tile(np.arange(n_before_window, dtype=np.float64), (n_head_kv, 1))


def knorm(k: Array, n_obs: int) -> Array:
    """Keys of small length first, https://arxiv.org/abs/2406.11430."""
    return -np.linalg.norm(k, axis=2).T[:, : len(k) - n_obs]


def keydiff(k: Array, n_obs: int) -> Array:
    """Keys unlike the mean direction of the head's keys (window included) first, https://arxiv.org/abs/2504.15364."""
    unit = k / np.linalg.norm(k, axis=2, keepdims=True)
    anchor = unit.mean(axis=0)
    anchor /= np.linalg.norm(anchor, axis=1, keepdims=True)
    return -(unit * anchor).sum(axis=2).T[:, : len(k) - n_obs]


def rope_matrix(position: float, theta: npt.NDArray[np.floating], is_neox: bool) -> Array:
    """Rotation [d, d] of a column vector at a position.

    theta is [d / 2], the angle of each pair for one position. Pair i is (i, i + d / 2) if is_neox, else (2 i, 2 i + 1).
    """
    n = len(theta)
    rotation = np.zeros((2 * n, 2 * n))
    for i, angle in enumerate(position * np.asarray(theta, dtype=np.float64)):
        a, b = (i, i + n) if is_neox else (2 * i, 2 * i + 1)
        rotation[a, a] = rotation[b, b] = np.cos(angle)
        rotation[a, b], rotation[b, a] = -np.sin(angle), np.sin(angle)
    return rotation


def expected_attention(
    q_before_rope: Array,
    k: Array,
    v: Array,
    theta: npt.NDArray[np.floating],
    n_obs: int,
    *,
    is_neox: bool,
    n_sink: int = 4,
    n_future: int = 512,
    eps: float = 1e-2,
) -> Array:
    """Attention that queries of the next n_future positions are expected to pay, https://arxiv.org/abs/2510.00636.

    Queries are taken as normal with the mean and covariance (divided by their number) of the prompt's, the first n_sink
    left out, each rotated by the mean rotation of the future positions. The softmax goes over all positions but the
    sinks, the mean over the group; then (score + eps) * |v|. Sinks get the head's highest score.
    """
    n_pos, n_head, d = q_before_rope.shape
    n_gqa = n_head // k.shape[1]
    rotation = np.mean([rope_matrix(n_pos + i, theta, is_neox) for i in range(n_future)], axis=0)
    probability = np.empty((n_head, n_pos - n_sink))
    for h in range(n_head):
        seen = q_before_rope[n_sink:, h]
        mean = rotation @ seen.mean(axis=0)
        covariance = rotation @ np.cov(seen.T, bias=True).reshape(d, d) @ rotation.T
        keys = k[n_sink:, h // n_gqa]
        logits = keys @ mean / np.sqrt(d) + np.einsum("pi,ij,pj->p", keys, covariance, keys) / (2 * d)
        weights = np.exp(logits - logits.max())
        probability[h] = weights / weights.sum()
    score = (fold_heads(probability, k.shape[1], "mean") + eps) * np.linalg.norm(v[n_sink:], axis=2).T
    sinks = np.repeat(score.max(axis=1, keepdims=True), n_sink, axis=1)
    return np.concatenate([sinks, score], axis=1)[:, : n_pos - n_obs]


def projected_value_norms(v: Array, wo: Array) -> Array:
    """L2 norm of each value behind the output projection, mean over the group, [n_head_kv, n_pos]."""
    n_gqa = len(wo) // v.shape[1]
    norms = [np.linalg.norm(v[:, h // n_gqa] @ wo[h], axis=1) for h in range(len(wo))]
    return fold_heads(np.stack(norms), v.shape[1], "mean")


def criticalkv(score: Array, v: Array, wo: Array, n_forced: list[int], eps: float = 1e-4) -> Array:
    """Any scores, made sensitive to what a value does to the output, https://arxiv.org/abs/2502.03805.

    The n_forced[ih] best positions of each head by `score` (half of its rows in the paper) come first; the others
    follow by (score + eps) * |wo v|. Ties to the lower position.
    """
    n_before_window = score.shape[1]
    second = (score + eps) * projected_value_norms(v, wo)[:, :n_before_window]
    for ih, n in enumerate(n_forced):
        second[ih, np.argsort(-score[ih], kind="stable")[:n]] = FIRST
    return second


def layer_defensive(
    q: Array, k: Array, v: Array, wo: Array, n_obs: int, n_forced: int, *, kernel: int = 5, mass: float = 0.9
) -> Array:
    """LayerDefensiveKV's scores, to be ranked over all layers, https://arxiv.org/abs/2510.13334.

    Window attention to the positions before it; each row averaged over `kernel` neighbours (at the ends over those that
    exist) and scaled back to its mass; maximum over group and window; at least the head's mean; times |wo v| divided by
    its sum over these positions. The fewest best positions that hold `mass` of the head's mean attention, at most
    `n_forced` (the average rows of a head), come before all others. Left out: the released code's small correction of
    `mass` for the window.
    """
    n_head_kv, n_before_window = k.shape[1], len(k) - n_obs
    rows = causal_attention(q, k, n_obs)[:, :, :n_before_window]  # [n_head, n_obs, n_before_window]
    pooled = np.stack([pool_positions(head, kernel, "avg") for head in rows])
    pooled *= rows.sum(axis=2, keepdims=True) / pooled.sum(axis=2, keepdims=True)
    worst = fold_heads(pooled.max(axis=1), n_head_kv, "max")
    worst = np.maximum(worst, worst.mean(axis=1, keepdims=True))
    norms = projected_value_norms(v[:n_before_window], wo)
    score = worst * norms / norms.sum(axis=1, keepdims=True)
    mean = fold_heads(rows.mean(axis=1), n_head_kv, "mean")
    for ih in range(n_head_kv):
        order = np.argsort(-mean[ih], kind="stable")
        held = np.cumsum(mean[ih][order]) / mean[ih].sum()
        n = int(np.count_nonzero(held < mass)) + 1
        score[ih, order[: min(n, n_forced)]] = FIRST
    return score


def semantics(q: Array, k: Array, v: Array, n_obs: int, n_top: int) -> Array:
    """What each KV head sees, [n_head_kv, d_v], Task-KV eq. 12 to 15, https://arxiv.org/abs/2501.15113.

    Attention of the last n_obs queries to all positions, mean over them and over the group; the values of the n_top
    positions that get most, each times what it gets, summed.
    """
    n_head_kv = k.shape[1]
    weights = fold_heads(causal_attention(q, k, n_obs).mean(axis=1), n_head_kv, "mean")
    top = np.argsort(-weights, axis=1, kind="stable")[:, :n_top]
    return np.stack([weights[ih, top[ih]] @ v[top[ih], ih] for ih in range(n_head_kv)])
