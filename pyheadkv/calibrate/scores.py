"""From attention to head scores, and whether they would come out the same again, in NumPy: no model, no files.

Symbols: attention f32 [n_head, n] is what one generated token's query attended to, over the n prompt positions; span is
the positions of the right answer, N of them. Heads of several layers lie one after the other, layer-major.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pyheadkv.cache.reconstruct import fold_heads

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]

N_SPLITS = 20  # of the examples into halves


def copy_hits(attention: npt.ArrayLike, span: Positions, prompt: Sequence[int], token: int) -> Floats:
    """One step of the retrieval score R, HeadKV eq. 1 (arXiv 2410.19258; Wu et al., arXiv 2404.15574).

    Parameters
    ----------
    attention
        [n_head, n]
    span
        positions of the answer, ascending
    prompt
        its n tokens
    token
        the one generated in this step

    Returns
    -------
    [n_head]: 1/N where the largest weight lies in the span on a token equal to the generated one, else 0
    """
    top = np.asarray(attention).argmax(axis=1)
    is_same = np.asarray(prompt)[top] == token
    hits: Floats = (np.isin(top, span) & is_same) / len(span)
    return hits


def span_mass(attention: npt.ArrayLike, span: Positions) -> Floats:
    """One step of the retrieval-reasoning score R2, HeadKV eq. 2.

    Parameters
    ----------
    attention
        [n_head, n], n >= N
    span
        positions of the right answer

    Returns
    -------
    [n_head]: sum over the N largest weights (ties: the lower position) of those inside the span, divided by N
    """
    weights = np.asarray(attention, dtype=np.float64)
    top = np.argsort(-weights, axis=1, kind="stable")[:, : len(span)]
    inside = np.where(np.isin(top, span), np.take_along_axis(weights, top, axis=1), 0)
    mass: Floats = inside.sum(axis=1) / len(span)
    return mass


def largest_attention(attention: npt.ArrayLike, n_head_kv: int, positions: Positions) -> Floats:
    """Reconstruction score of a layer, KVzip's averaged over positions (arXiv 2505.23416, eq. 2).

    Parameters
    ----------
    attention
        [n_head, n], the largest weight that any token of the repetition gave to each position
    positions
        of the text that was repeated

    Returns
    -------
    [n_head_kv]: mean over the positions of the largest weight in the group
    """
    weights = np.asarray(attention, dtype=np.float64)[:, positions]
    largest: Floats = fold_heads(weights, n_head_kv, "max").mean(axis=1)
    return largest


def fold_groups(scores: Floats, n_head: Sequence[int], n_head_kv: Sequence[int], fold: str) -> Floats:
    """Scores of query heads -> of KV heads, by the "sum" or the "max" over each group.

    Parameters
    ----------
    scores
        [sum of n_head]
    n_head, n_head_kv
        of each layer

    Returns
    -------
    [sum of n_head_kv]
    """
    layers = np.split(scores, np.cumsum(n_head)[:-1])
    return np.concatenate([fold_heads(layer, n, fold) for layer, n in zip(layers, n_head_kv, strict=True)])


def normalised(scores: Floats) -> Floats:
    """Scores that sum to 1. The sum must be above 0."""
    shares: Floats = scores / scores.sum()
    return shares


def by_layer(scores: Floats, sizes: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """[sum of sizes] -> one tuple for each layer."""
    return tuple(tuple(layer.tolist()) for layer in np.split(scores, np.cumsum(sizes)[:-1]))


def split_half(values: Floats, groups: Sequence[int], seed: int) -> float | None:
    """Mean over random splits of Pearson's correlation between the mean scores of two halves.

    Parameters
    ----------
    values
        [n_example, n_head]
    groups
        [n_example]: examples of one group (a page) share a text, so they go to the same half

    Returns
    -------
    correlation, or None where there are fewer than two groups or a half has the same score everywhere
    """
    rng = random.Random(seed)
    names = sorted(set(groups))
    if len(names) < 2:
        return None
    found = []
    for _ in range(N_SPLITS):
        chosen = set(rng.sample(names, len(names) // 2))
        is_first = np.array([group in chosen for group in groups])
        first, second = values[is_first].mean(axis=0), values[~is_first].mean(axis=0)
        if np.ptp(first) == 0 or np.ptp(second) == 0:
            return None
        found.append(float(np.corrcoef(first, second)[0, 1]))
    return sum(found) / len(found)
