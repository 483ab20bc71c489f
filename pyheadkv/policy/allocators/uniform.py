"""Uniform: every KV head keeps the same number of rows, to within one row. SnapKV's allocation.

Paper: Li et al., SnapKV, https://arxiv.org/abs/2404.14469

Differs from the paper: counts rows per KV head instead of per query head; a total that the heads do
not divide is spread over the first ones instead of being rounded away.
"""

from __future__ import annotations

from pyheadkv.policy.allocators.base import Allocator, AllocRequest


def allocate(request: AllocRequest) -> list[list[int]]:
    """Deal the rows equally."""
    return request.deal([1] * request.n_heads)


UNIFORM = Allocator("uniform", "the same number of rows for every KV head", allocate)
