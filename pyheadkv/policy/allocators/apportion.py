"""Deal a whole number of rows to heads, in proportion to targets: bounds kept, the sum exact.

Every allocator ends here. Two steps, both in exact arithmetic:

1. *Water-filling.* Head i gets the real share x_i = clamp(w * target_i, floor_i, cap_i), with the
   one water level w at which the shares add up to the total. This is what "clamp, and redistribute
   the surplus in proportion to the targets among the unclamped" ends in, however often that is
   repeated.
2. *Largest remainder.* Every x_i is rounded down, and the rows left over go to the largest
   fractions, ties to the lower index. Bounds are whole numbers, so rounding never leaves them.

Example: targets 1, 1, 8, floors 2, caps 10, 10, 9, total 14. w = 2.5 gives 2.5, 2.5, 9, and so
3, 2, 9.

Differs from a plain proportional cut: the real shares grow with the total, the rounded ones may
drop by one row when the total grows (every largest-remainder method does that).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from pyheadkv.errors import BudgetError, PolicyError

Number = int | float | Fraction


def apportion(targets: Sequence[Number], floors: Sequence[int], caps: Sequence[int], total: int) -> list[int]:
    """Deal `total` rows.

    Parameters
    ----------
    targets
        finite weights >= 0; only their proportions matter. Heads of weight 0 get more than their
        floor only when all others are at their caps, then in equal parts
    floors, caps
        least and most rows of each head, floors[i] <= caps[i]
    total
        rows to deal

    Returns
    -------
    list of int
        one count per head, sum exactly `total`

    Raises
    ------
    BudgetError
        the floors exceed the total, or the total exceeds the caps
    PolicyError
        a target is negative or not finite
    """
    if sum(floors) > total:
        raise BudgetError(f"a budget of {total} rows is below the floors of {sum(floors)} rows")
    if sum(caps) < total:
        raise BudgetError(f"a budget of {total} rows is above the {sum(caps)} rows that exist")
    weights = _exact_weights(targets)
    weighted = [i for i, weight in enumerate(weights) if weight > 0]
    weightless = [i for i, weight in enumerate(weights) if weight == 0]

    shares = [Fraction(floor) for floor in floors]
    rest = total - sum(floors[i] for i in weightless)
    n_weighted = min(rest, sum(caps[i] for i in weighted))
    _fill(shares, weighted, weights, floors, caps, n_weighted)
    _fill(shares, weightless, [1] * len(weights), floors, caps, total - n_weighted)
    return _round(shares, total)


def _exact_weights(targets: Sequence[Number]) -> list[int]:
    # whole numbers in the proportions of the targets: much faster than fractions in the loops below
    for i, target in enumerate(targets):
        if (isinstance(target, float) and not math.isfinite(target)) or target < 0:
            raise PolicyError(f"the target of KV head {i} is {target}, expected a finite number of at least 0")
    fractions = [Fraction(target) for target in targets]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    return [int(fraction * scale) for fraction in fractions]


def _fill(
    shares: list[Fraction],
    heads: list[int],
    weights: Sequence[int],
    floors: Sequence[int],
    caps: Sequence[int],
    total: int,
) -> None:
    """Set shares[i] = clamp(w * weights[i], floors[i], caps[i]) for `heads`, summing to `total`."""
    # the sum grows with w, linearly between the levels at which a head leaves its floor or meets
    # its cap
    leaves_floor = [(Fraction(floors[i], weights[i]), weights[i], -floors[i]) for i in heads]
    reaches_cap = [(Fraction(caps[i], weights[i]), -weights[i], caps[i]) for i in heads]
    clamped, slope = sum(floors[i] for i in heads), 0
    level = Fraction(0)
    for level, d_slope, d_clamped in sorted(leaves_floor + reaches_cap):
        if clamped + slope * level >= total:
            break
        clamped, slope = clamped + d_clamped, slope + d_slope
    if slope:
        level = Fraction(total - clamped, slope)
    for i in heads:
        shares[i] = min(max(level * weights[i], Fraction(floors[i])), Fraction(caps[i]))


def _round(shares: list[Fraction], total: int) -> list[int]:
    rows = [math.floor(share) for share in shares]
    by_fraction = sorted(range(len(shares)), key=lambda i: (rows[i] - shares[i], i))
    for i in by_fraction[: total - sum(rows)]:
        rows[i] += 1
    return rows
