"""HeadKV: a small equal part for every head, and a shared pool dealt by measured head scores.

Paper: Fu et al., Not All Heads Matter, https://arxiv.org/abs/2410.19258, equation 4. With b rows
per head beside the observation window, n heads and scores S that sum to 1:

    p        = floor(b / beta)              what each head puts into the pool
    target_h = (b - p) + S_h * p * n        equal part + share of the pool

A small beta follows the scores, a large one is nearly uniform. The released code can sharpen the scores
first, S <- S^T / sum of S^T; T, the temperature, is 1 in everything published. Example: 128 rows per head with a
window of 8, beta 1.01, 1024 heads: b = 120, p = 118, and a head with 1.51 % of the score gets 2 +
0.0151 * 118 * 1024 = 1827 rows.

Differs from the paper: heads are KV heads (the released code expands K and V to query heads first
and keeps up to n_gqa times as many rows); a head that is given more rows than the prompt has passes
the surplus on, in proportion to the targets, where the released code loses it; every head keeps its
sinks; the rounded rows sum exactly to the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from pyheadkv.policy.allocators.apportion import Number
from pyheadkv.policy.allocators.base import Allocator, AllocRequest, Param
from pyheadkv.policy.allocators.inputs import head_shares


def headkv_targets(shares: Sequence[Number], mean_rows: Number, n_obs: int, beta: float) -> list[Fraction]:
    """Equation 4, not rounded and not bounded.

    Parameters
    ----------
    shares
        score of each head, summing to 1 over all heads of the model
    mean_rows
        rows per head on average, observation window included
    n_obs
        rows of the observation window
    beta
        above 1; taken as the exact value of the float, as Python's ``//`` in the released code does

    Returns
    -------
    list of Fraction
        rows beside the observation window; they sum to (mean_rows - n_obs) * len(shares)
    """
    b = Fraction(mean_rows) - n_obs
    p = math.floor(b / Fraction(beta))
    return [(b - p) + Fraction(share) * p * len(shares) for share in shares]


def sharpened(shares: Sequence[Fraction], temperature: float) -> list[Fraction]:
    """Shares to the power of `temperature`, summing to 1 again; 1 leaves them as they are."""
    if temperature == 1:
        return list(shares)
    # divided by the largest first, so that a power cannot make all of them 0
    powers = [Fraction(float(share / max(shares)) ** temperature) for share in shares]
    return [power / sum(powers) for power in powers]


def allocate(request: AllocRequest) -> list[list[int]]:
    """Deal the rows by equation 4."""
    shares = sharpened(head_shares(request, "headkv"), request.params.get("temperature", 1))
    return request.deal(headkv_targets(shares, request.mean_rows(), request.n_obs, request.params["beta"]))


HEADKV = Allocator(
    "headkv",
    "an equal part for every KV head, the rest by measured head scores",
    allocate,
    source="2410.19258",
    needs_profile=True,
    params={
        "beta": Param(default=1.2, above=1, at_most=1000),
        "temperature": Param(default=1, above=0, at_most=100),
    },
)
