"""DynamicKV: rows per layer by where the strongest scores of this prompt are; equal within a layer.

Paper: Zhou et al., DynamicKV, https://arxiv.org/abs/2412.14838, algorithm 1, and the code released with
it. With b rows to choose per head on average, n_layer layers and r_max b as the most that a head may
hold at first; after every m layers, when P of them have been scored:

    c_l = how many of the highest b * (heads of the P layers) scores of the P layers are in layer l
    z_l = c_l / sum of c * b * n_layer     rows per head of layer l
    layer l is cut to z_l if it holds more; what was cut is gone

so an early layer starts with many rows and is cut again at every update. Example: 8 layers, b = 10, m =
4, r_max = 5; counts in proportion 20, 10, 5, 5 after 4 layers give 40, 20, 10, 10.

All heads of a layer get the same rows, as in the released code.

Differs from the paper: heads are KV heads; sinks and protected spans are set aside first and do not
count; rows are rounded once, at the end, and sum exactly (the released code rounds at each step and
gives the rest to the last layer: 40, 19, 9, 12 in the example); the last layer always ends in an
update, also where m does not divide the layers; a layer never gets more than it still holds, where the
released code repeats rows of the window, unless the budget could not be spent otherwise. All scores
are at hand here before a row is dropped, so the cuts save no memory: they are kept for the result.
"""

from __future__ import annotations

import math
from fractions import Fraction

from pyheadkv.policy.allocators.apportion import apportion
from pyheadkv.policy.allocators.base import Allocator, AllocRequest, Param
from pyheadkv.policy.allocators.inputs import evictable_scores
from pyheadkv.policy.allocators.ranking import Ranking


def allocate(request: AllocRequest) -> list[list[int]]:
    """Deal the rows to layers by repeated global rankings, and equally within each layer."""
    by_layer = _rows_by_layer(request, Ranking(evictable_scores(request, "dynamickv")))
    dealt: list[int] = []
    for n, rows in zip(request.n_head_kv, by_layer, strict=True):
        dealt += apportion([1] * n, [0] * n, [request.n_evictable_pos] * n, rows)
    return request.with_protected(dealt)


def _rows_by_layer(request: AllocRequest, ranking: Ranking) -> list[int]:
    n_head_kv, n_layer, total = request.n_head_kv, len(request.n_head_kv), request.evictable_rows()
    m = int(request.params["m"])
    b = Fraction(total, request.n_heads)
    held = [min(math.floor(Fraction(request.params["r_max"]) * b), request.n_evictable_pos)] * n_layer  # rows per head
    for n_seen in range(m, n_layer, m):
        shares = _shares(ranking, math.floor(b * sum(n_head_kv[:n_seen])), n_seen)
        for il, share in enumerate(shares):
            held[il] = min(held[il], math.floor(share * total / n_head_kv[il]))
    caps = [rows * n for rows, n in zip(held, n_head_kv, strict=True)]
    shares = _shares(ranking, total, n_layer)
    spent = apportion(shares, [0] * n_layer, caps, min(total, sum(caps)))
    return apportion(shares, spent, [request.n_evictable_pos * n for n in n_head_kv], total)


def _shares(ranking: Ranking, k: int, n_layer: int) -> list[Fraction]:
    """Part of the `k` highest scores of the first `n_layer` layers that each of them has."""
    counts = [int(layer.sum()) for layer in ranking.counts(k, n_layer)]
    n_counted = sum(counts)
    return [Fraction(count, n_counted) if n_counted else Fraction(1, n_layer) for count in counts]


DYNAMICKV = Allocator(
    "dynamickv",
    "rows per layer by where the highest scores of this prompt are, equal within a layer",
    allocate,
    source="2412.14838",
    needs_token_scores=True,
    ranks="model",
    params={
        "m": Param(default=4, at_least=1, at_most=1024, is_whole=True),
        "r_max": Param(default=5, above=0, at_most=1000),
    },
)
