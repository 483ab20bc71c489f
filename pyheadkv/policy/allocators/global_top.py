"""Global: one ranking of all positions of all KV heads; each head keeps what it has among the best.

Source: Kim et al., KVzip, https://arxiv.org/abs/2505.23416, section 4 (one ratio for all heads); Feng
et al., LayerDefensiveKV, https://arxiv.org/abs/2510.13334, where it decides the totals of the layers.

    rows_h = what is always kept + how many of the k highest scores are in head h

Scores must mean the same in every head and layer, as attention weights do.

Differs from the papers: what is always kept is set aside before the ranking, where LayerDefensiveKV
lets its window compete with each layer's highest score. Equal scores go to the earlier layer, then to
the earlier head, so that scores that are all equal fill the first heads.
"""

from __future__ import annotations

from pyheadkv.policy.allocators.base import Allocator, AllocRequest
from pyheadkv.policy.allocators.inputs import evictable_scores
from pyheadkv.policy.allocators.ranking import Ranking


def allocate(request: AllocRequest) -> list[list[int]]:
    """Deal the rows by one ranking."""
    counts = Ranking(evictable_scores(request, "global")).counts(request.evictable_rows())
    return request.with_protected([int(n) for layer in counts for n in layer])


GLOBAL = Allocator(
    "global",
    "the best positions of all KV heads of all layers together",
    allocate,
    source="2505.23416",
    needs_token_scores=True,
    ranks="model",
)
