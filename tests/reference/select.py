"""From window attention to kept positions, in NumPy, as SnapKV does it (https://arxiv.org/abs/2404.14469)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def fold_heads(attn: Floats, n_head_kv: int, fold: str) -> Floats:
    """[n_head, n] -> [n_head_kv, n]: mean or max over the query heads of each KV head."""
    groups = attn.reshape(n_head_kv, -1, attn.shape[1])
    return groups.max(axis=1) if fold == "max" else groups.mean(axis=1)


def pool_positions(score: Floats, kernel: int, pool: str) -> Floats:
    """Max or mean over `kernel` neighbouring positions, stride 1; at the ends over those that exist."""
    half = kernel // 2
    reduce = np.max if pool == "max" else np.mean
    columns = [reduce(score[:, max(0, p - half) : p + half + 1], axis=1) for p in range(score.shape[1])]
    return np.stack(columns, axis=1)


def mix_vote(
    scores: list[Floats],
    vote_weights: Floats,
    vote_shares: Floats,
    kernels: list[int],
    vote_kernel: int,
    n_sink: int,
    pool: str,
) -> list[Floats]:
    """Pool each head's scores by its own kernel, and mix in what all heads found.

    scores are [n_head_kv, n] for each layer, folded but not pooled; vote_weights, vote_shares and kernels go over all
    heads, layer after layer. The vote is the weighted mean of the heads' scores, each divided by its sum behind the
    sinks.
    """

    def normalised(row: Floats) -> Floats:
        return row / row[n_sink:].sum()

    rows = np.concatenate(scores)
    found = np.stack([np.where(np.arange(rows.shape[1]) < n_sink, 0, normalised(row)) for row in rows])
    vote = normalised(pool_positions((vote_weights[:, None] * found).sum(axis=0, keepdims=True), vote_kernel, pool)[0])
    pooled = [pool_positions(row[None], kernel, pool)[0] for row, kernel in zip(rows, kernels, strict=True)]
    mixed = [
        (1 - share) * normalised(row) + share * vote if share else row
        for row, share in zip(pooled, vote_shares, strict=True)
    ]
    return np.split(np.stack(mixed), np.cumsum([len(layer) for layer in scores])[:-1])


def select_positions(score: Floats, n_sink: int, n_keep: int) -> npt.NDArray[np.int64]:
    """Positions of one head, ascending: the sinks, then the highest scores, ties to the lower position.

    score is [n]; n_keep counts the sinks.
    """
    by_rank = sorted(range(n_sink, len(score)), key=lambda p: (-score[p], p))
    return np.array(sorted([*range(n_sink), *by_rank[: n_keep - n_sink]]), dtype=np.int64)
