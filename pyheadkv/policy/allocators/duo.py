"""Duo: the heads that retrieve keep everything, the others only their first and last positions.

Paper: Xiao et al., DuoAttention, https://arxiv.org/abs/2410.10819, section 3.

Every KV head gets its sinks and `recent` last rows, which may take a quarter of what is dealt. What the
budget has left makes heads full, the highest score first; the head at which it ends keeps as much as
there is. So a KV head has all rows of the prompt (retrieval head), or few (streaming head), and at most
one lies between.

Differs from the paper: scores come from the profile, not from trained gates, and the budget takes the
place of the threshold; recent rows are fewer where the budget is small, so that heads are full at any
budget. Which rows a streaming head keeps is up to the scorer: one that rates positions by how late they
are makes them sinks + recent.
"""

from __future__ import annotations

from pyheadkv.policy.allocators.base import Allocator, AllocRequest, Param
from pyheadkv.policy.allocators.inputs import head_scores

MAX_PART = 4  # recent rows take at most one of so many parts of what is dealt


def allocate(request: AllocRequest) -> list[list[int]]:
    """Fill heads in the order of their scores; of equal scores, the earlier head."""
    scores, n, n_evictable_pos = head_scores(request, "duo"), request.n_heads, request.n_evictable_pos
    total = request.evictable_rows()
    recent = min(max(int(request.params["recent"]) - request.n_obs, 0), total // (MAX_PART * n))
    dealt, rest = [recent] * n, total - n * recent
    for head in sorted(range(n), key=lambda head: (-scores[head], head)):
        more = min(n_evictable_pos - recent, rest)
        dealt[head], rest = recent + more, rest - more
    return request.with_protected(dealt)


DUO = Allocator(
    "duo",
    "KV heads with the highest measured scores keep all, the others sinks and recent rows",
    allocate,
    source="2410.10819",
    needs_profile=True,
    params={"recent": Param(default=256, at_least=0, at_most=1 << 20, is_whole=True)},
)
