"""A policy of one's own: fewer rows in every later layer, for the positions that later queries are expected to need.

pyheadkv chat MODEL --policy falling.py:steepness=2
"""

from pyheadkv import Allocator, AllocRequest, Param, Policy, Scorer, register_allocator, register_policy


def allocate(request: AllocRequest) -> list[list[int]]:
    """Deal rows by layer: the first gets `steepness` times as many as the last."""
    n_layer, steepness = len(request.n_head_kv), request.params["steepness"]
    weights = [steepness + (1 - steepness) * i / max(n_layer - 1, 1) for i in range(n_layer)]
    return request.deal([weights[i] for i, n in enumerate(request.n_head_kv) for _ in range(n)])


register_allocator(
    Allocator(
        "falling",
        "fewer rows in every later layer",
        allocate,
        params={"steepness": Param(default=4, at_least=1, at_most=100)},
    )
)
register_policy(Policy("falling", "falling", Scorer("expected_attention", n_obs=4, pool_kernel=5)))
