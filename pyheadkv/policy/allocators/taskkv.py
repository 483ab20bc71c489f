"""Task-KV: heads that look at this prompt in a way of their own keep everything, the others little.

Paper: He et al., Task-KV, https://arxiv.org/abs/2501.15113, equations 16 and 17. Every layer has the
same budget. Layer r of n_layer, with n KV heads, makes f(r) of them heterogeneous,

    f(r) = n beta - (n beta - m) / (n_layer - 1) r

namely those whose output is farthest from the mean output of the layer, and the one nearest to it, which
speaks for the crowd. They keep all positions. The others share what is left of the layer's budget:
sinks, the last `recent` positions, and the best of the middle.

Example: n = 32, beta 0.25, m = 4, 32 layers: 8 heads in the bottom layer, 4 in the top one. A prompt of
4000, 40 % kept: 51200 rows a layer, 8 * 4000 for the 8, (51200 - 32000) / 24 = 800 for each other.

Differs from the paper, which leaves these open: the distance is Euclidean; f is rounded half up and at least
1; the nearest head is one of the f, and there is none for f = 1; heads are KV heads, and beta and m default to
the paper's for grouped attention (0.3 and 1). When the others cannot have sinks and recent rows, f is lowered; when not
even one head fits, the farthest keeps as much as the others' floors leave; a layer that cannot give
`recent` rows to all is dealt equally. Of equal distances the earlier head wins. That the recent rows are
among those kept is up to the policy, which protects them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from pyheadkv.policy.allocators.apportion import apportion
from pyheadkv.policy.allocators.base import Allocator, AllocRequest, Param
from pyheadkv.policy.allocators.inputs import head_distances


def n_heterogeneous(r: int, n_layer: int, n_head_kv: int, beta: float, m: float) -> int:
    """f(r) of equation 16, rounded half up, 1 to n_head_kv; beta is the decimal number that was typed."""
    bottom = n_head_kv * Fraction(str(beta))
    f = bottom - (bottom - Fraction(m)) * Fraction(r, max(n_layer - 1, 1))
    return min(max(math.floor(f + Fraction(1, 2)), 1), n_head_kv)


def heterogeneous_heads(distances: Sequence[float], f: int) -> list[int]:
    """Indices of `f` heads, farthest first; from 2 on the last one is the nearest of all."""
    farthest = sorted(range(len(distances)), key=lambda ih: (-distances[ih], ih))
    chosen = farthest[: max(f - 1, 1)]
    rest = [ih for ih in range(len(distances)) if ih not in chosen]
    return [*chosen, min(rest, key=lambda ih: distances[ih])] if f >= 2 else chosen


def allocate(request: AllocRequest) -> list[list[int]]:
    """Deal each layer's rows to heterogeneous heads first."""
    n_layer = len(request.n_head_kv)
    recent = min(max(int(request.params["recent"]) - request.n_obs, 0), request.n_evictable_pos)
    dealt: list[int] = []
    layers = zip(head_distances(request, "taskkv"), request.evictable_rows_by_layer(), strict=True)
    for r, (distances, total) in enumerate(layers):
        f = n_heterogeneous(r, n_layer, len(distances), request.params["beta"], request.params["m"])
        dealt += _allocate_layer(distances, total, f, recent, request.n_evictable_pos)
    return request.with_protected(dealt)


def _allocate_layer(distances: Sequence[float], total: int, f: int, recent: int, n_evictable_pos: int) -> list[int]:
    n = len(distances)
    if n * recent > total:
        return apportion([1] * n, [0] * n, [n_evictable_pos] * n, total)
    while f > 1 and f * n_evictable_pos + (n - f) * recent > total:
        f -= 1
    full = min(n_evictable_pos, total - (n - f) * recent)
    chosen = heterogeneous_heads(distances, f)
    floors = [full if ih in chosen else recent for ih in range(n)]
    others = [0 if ih in chosen else 1 for ih in range(n)]
    return apportion(others, floors, [n_evictable_pos] * n, total)


TASKKV = Allocator(
    "taskkv",
    "KV heads with an output of their own keep all, the others sinks, recent rows and some of the middle",
    allocate,
    source="2501.15113",
    needs_semantics=True,
    n_top=256,
    params={
        "beta": Param(default=0.3, above=0, at_most=1),
        "m": Param(default=1, at_least=0, at_most=1024),
        "recent": Param(default=256, at_least=0, at_most=1 << 20, is_whole=True),
    },
)
