"""Ada-KV: every layer has the same budget, its heads share it by the scores of this prompt.

Paper: Feng et al., Ada-KV, https://arxiv.org/abs/2407.11550, algorithms 1 and 2. In a layer with n KV
heads and k rows to choose:

    s_h <- s_h * (sum of the k / n highest of s_h) / (sum of s_h)     released code: heads made comparable
    f_h  = how many of the k highest scores of the layer are in head h
    b_h  = (1 - safeguard) f_h + safeguard k / n

Example: 2 heads, k = 20, of which 17 and 3 are in the top 20, safeguard 0.2: 13.6 + 2 and 2.4 + 2 give
16 and 4.

Differs from the paper: heads are KV heads, their scores are folded over the group before; sinks and
protected spans are set aside first and do not count; the safeguard is exact and the rounded rows sum
to the layer's budget, where the released code rounds each head and may lose or gain a row.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from pyheadkv.errors import PolicyError
from pyheadkv.policy.allocators.apportion import apportion
from pyheadkv.policy.allocators.base import Allocator, AllocRequest, Param
from pyheadkv.policy.allocators.inputs import evictable_scores
from pyheadkv.policy.allocators.ranking import Ranking


def scaled_scores(scores: npt.NDArray[np.float32], n_top: int) -> npt.NDArray[np.float32]:
    """Scores of a layer, each head times the part of its sum that its `n_top` highest hold.

    Parameters
    ----------
    scores
        float32 [n_head_kv, n], n >= 1
    n_top
        1 to n

    Raises
    ------
    PolicyError
        a score is below 0, so that parts of a sum mean nothing
    """
    lowest = float(scores.min())
    if lowest < 0:
        raise PolicyError(f"a token score is {lowest:g}, adakv with scale=1 expects at least 0; use scale=0")
    n = scores.shape[1]
    sums = scores.sum(axis=1, dtype=np.float64)
    top_sums = np.partition(scores, n - n_top, axis=1)[:, n - n_top :].sum(axis=1, dtype=np.float64)
    parts = np.divide(top_sums, sums, out=np.ones_like(sums), where=sums > 0)
    scaled: npt.NDArray[np.float32] = scores * parts.astype(np.float32)[:, None]
    return scaled


def allocate(request: AllocRequest) -> list[list[int]]:
    """Deal each layer's rows by its own ranking. A PolicyError for negative scores with scale=1."""
    layers = evictable_scores(request, "adakv")
    dealt: list[int] = []
    for scores, k in zip(layers, request.evictable_rows_by_layer(), strict=True):
        dealt += _allocate_layer(scores, k, request.params["safeguard"], bool(request.params["scale"]))
    return request.with_protected(dealt)


def _allocate_layer(scores: npt.NDArray[np.float32], k: int, safeguard: float, is_scaled: bool) -> list[int]:
    n, n_evictable_pos = scores.shape
    if is_scaled and n_evictable_pos > 0:
        scores = scaled_scores(scores, max(k // n, 1))
    counts = Ranking([scores]).counts(k)[0]
    equal_part = Fraction(safeguard) * Fraction(k, n)
    targets = [(1 - Fraction(safeguard)) * int(count) + equal_part for count in counts]
    return apportion(targets, [0] * n, [n_evictable_pos] * n, k)


ADAKV = Allocator(
    "adakv",
    "the same number of rows for every layer, shared by its KV heads by the scores of this prompt",
    allocate,
    source="2407.11550",
    needs_token_scores=True,
    ranks="layer",
    params={
        "safeguard": Param(default=0.2, at_least=0, at_most=1),
        "scale": Param(default=1, at_least=0, at_most=1, is_whole=True, needs_sums=True),
    },
)
