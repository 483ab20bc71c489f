"""PyramidKV: rows fall from the bottom layer to the top in equal steps; equal within a layer.

Paper: Cai et al., PyramidKV, https://arxiv.org/abs/2406.02069, section 4.2. With b rows per head
beside the observation window, n_layer layers and n positions before the window:

    last  = floor(b / beta)       first = 2 b - last
    first = n, last = 2 b - n     if first would be above n
    b_l   = first - l (first - last) / (n_layer - 1)

A prompt shorter than 2 b rows keeps b in every layer. Example: 128 rows per head with a window of 8,
32 layers, beta 20: the bottom layer gets 234 + 8 rows and the top one 6 + 8.

Differs from the paper: the released code rounds the step down and so spends more than it was given
(125.5 rows per head instead of 120 in the example); here the step is exact and the rounded rows sum to
the budget. Heads are KV heads, and every head keeps its sinks. Layers of unequal n_head_kv keep their
proportions, scaled to the budget.
"""

from __future__ import annotations

import math
from fractions import Fraction

from pyheadkv.policy.allocators.base import Allocator, AllocRequest, Param


def pyramid_targets(mean_rows: Fraction, n_layer: int, n_before_window: int, n_obs: int, beta: float) -> list[Fraction]:
    """Rows per head of each layer beside the window, not rounded; their mean is ``mean_rows - n_obs``.

    Parameters
    ----------
    mean_rows
        rows per head on average, observation window included
    n_layer
        layers, bottom first
    n_before_window
        positions before the window
    n_obs
        rows of the window
    beta
        above 1; the larger, the steeper
    """
    b = mean_rows - n_obs
    if n_layer == 1:
        return [b]
    last = Fraction(math.floor(b / Fraction(beta)))
    first = 2 * b - last
    if first > n_before_window:
        first, last = Fraction(n_before_window), 2 * b - n_before_window
    return [first - il * (first - last) / (n_layer - 1) for il in range(n_layer)]


def allocate(request: AllocRequest) -> list[list[int]]:
    """Deal the rows in a pyramid."""
    n_layer, mean = len(request.n_head_kv), request.mean_rows()
    if request.n_prompt < 2 * (mean - request.n_obs):
        return request.deal([1] * request.n_heads)
    by_layer = pyramid_targets(mean, n_layer, request.n_before_window, request.n_obs, request.params["beta"])
    return request.deal([target for target, n in zip(by_layer, request.n_head_kv, strict=True) for _ in range(n)])


PYRAMID = Allocator(
    "pyramid",
    "fewer rows in every higher layer, in equal steps",
    allocate,
    source="2406.02069",
    params={"beta": Param(default=20, above=1, at_most=1000)},
)
