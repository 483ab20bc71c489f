"""Rows per KV head, written a second time to be checked by eye: exact, slow, another algorithm than the package's.

Nothing here is imported from the package.
"""

from __future__ import annotations

import math
from fractions import Fraction


def water_fill(targets: list[Fraction], floors: list[int], caps: list[int], total: int) -> list[Fraction]:
    """Real shares: give everyone a proportional part, clamp, and deal again what the clamped ones left.

    In each round only the side that distorts more is frozen (too little at the floors, or too much at the caps), as
    browsers do for flexible boxes; freezing both at once would be wrong.
    """
    shares: list[Fraction | None] = [None] * len(targets)
    while any(share is None for share in shares):
        free = [i for i, share in enumerate(shares) if share is None]
        left = total - sum(share for share in shares if share is not None)
        tried = proportional([targets[i] for i in free], [floors[i] for i in free], left)
        lifted = {i: Fraction(floors[i]) for i, x in zip(free, tried, strict=True) if x < floors[i]}
        cut = {i: Fraction(caps[i]) for i, x in zip(free, tried, strict=True) if x > caps[i]}
        by_head = dict(zip(free, tried, strict=True))
        too_little = sum(floors[i] - by_head[i] for i in lifted)
        too_much = sum(by_head[i] - caps[i] for i in cut)
        if too_little == too_much:
            frozen = {i: min(max(x, Fraction(floors[i])), Fraction(caps[i])) for i, x in by_head.items()}
        else:
            frozen = lifted if too_little > too_much else cut
        for i, x in frozen.items():
            shares[i] = x
    return [share for share in shares if share is not None]


def proportional(targets: list[Fraction], floors: list[int], total: Fraction) -> list[Fraction]:
    """Shares in proportion to the targets; when all of them are 0, equal ones."""
    whole = sum(targets)
    if whole == 0:
        return [Fraction(total, len(targets))] * len(targets)
    return [Fraction(total) * target / whole for target in targets]


def largest_remainder(shares: list[Fraction]) -> list[int]:
    """Round down, then one more for the largest fractions; the lower index wins a tie."""
    total = sum(shares)
    rows = [math.floor(share) for share in shares]
    while sum(rows) < total:
        i = max(range(len(shares)), key=lambda i: (shares[i] - rows[i], -i))
        rows[i] += 1
    return rows


def deal(targets: list[Fraction], n_prompt: int, total_rows: int, n_sink: int, n_obs: int) -> list[int]:
    """Rows of each head: window and sinks first, the rest by the targets, at most the whole prompt."""
    n = len(targets)
    floors, caps = [min(n_sink, n_prompt - n_obs)] * n, [n_prompt - n_obs] * n
    chosen = largest_remainder(water_fill(targets, floors, caps, total_rows - n * n_obs))
    return [n_obs + rows for rows in chosen]


def headkv(scores: list[Fraction], beta: float, n_prompt: int, total_rows: int, n_sink: int, n_obs: int) -> list[int]:
    """HeadKV equation 4 per KV head, https://arxiv.org/abs/2410.19258."""
    n = len(scores)
    b = Fraction(total_rows, n) - n_obs
    p = (b / Fraction(beta)).__floor__()
    targets = [b - p + score / sum(scores) * p * n for score in scores]
    return deal(targets, n_prompt, total_rows, n_sink, n_obs)


def pyramid_published(capacity: int, n_obs: int, n_layer: int, beta: int, n_prompt: int) -> list[int]:
    """PyramidKV's rows per layer without the window, as the released code rounds, https://arxiv.org/abs/2406.02069.

    That code does not use them for a prompt of less than 2 * base: all layers get base then.
    """
    base = capacity - n_obs
    least = base // beta
    most = 2 * base - least
    if most >= n_prompt - n_obs:
        most = n_prompt - n_obs
        least = 2 * base - most
    step = (most - least) // (n_layer - 1)
    return [most - il * step for il in range(n_layer)]


def pyramid(
    n_head_kv: list[int], beta: float, n_prompt: int, total_rows: int, always: int, n_obs: int
) -> list[Fraction]:
    """PyramidKV with an exact step: real shares of all heads, sinks and what else is always kept as floors."""
    b = Fraction(total_rows, sum(n_head_kv)) - n_obs
    n_layer, n_before_window = len(n_head_kv), n_prompt - n_obs
    if n_prompt < 2 * b:
        ends = b, b
    else:
        least = math.floor(b / Fraction(beta))
        most = min(2 * b - least, Fraction(n_before_window))
        ends = most, 2 * b - most
    weights = [Fraction(il, max(n_layer - 1, 1)) for il in range(n_layer)]
    by_layer = [b if n_layer == 1 else (1 - x) * ends[0] + x * ends[1] for x in weights]
    targets = [target for target, n in zip(by_layer, n_head_kv, strict=True) for _ in range(n)]
    n = len(targets)
    return water_fill(targets, [always] * n, [n_before_window] * n, total_rows - n * n_obs)


def duo(scores: list[float], recent: int, n_evictable_pos: int, total: int) -> list[int]:
    """DuoAttention by budget: rows beside what is always kept; row after row is given out, one at a time."""
    n = len(scores)
    while 4 * n * recent > total:
        recent -= 1
    ranks = sorted(range(n), key=lambda i: -scores[i])
    order = [i for i in range(n) for _ in range(recent)] + [i for i in ranks for _ in range(n_evictable_pos - recent)]
    return [order[:total].count(i) for i in range(n)]
