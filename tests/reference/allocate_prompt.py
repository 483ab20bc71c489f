"""Rows per KV head by what a prompt's scores say, from the papers' formulas: sorted lists, exact fractions, slow.

Scores are numbers, scores[il][ih][pos]; `evictable_positions` are those that are not kept anyway. Rows returned
are of these. Nothing here is imported from the package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from tests.reference.allocate import largest_remainder, water_fill

Scores = Sequence[Sequence[Sequence[float]]]


def evictable_positions(n_prompt: int, n_obs: int, n_sink: int, protected: Sequence[tuple[int, int]]) -> list[int]:
    """Positions before the window that are neither sinks nor protected."""
    always = {pos for first, end in [(0, n_sink), *protected] for pos in range(first, end)}
    return [pos for pos in range(n_prompt - n_obs) if pos not in always]


def top_counts(scores: Scores, positions: Sequence[int], k: int) -> list[list[int]]:
    """How many of the k best are in each head; of equals, the earlier layer, head, position."""
    entries = [
        (-scores[il][ih][pos], il, ih, pos)
        for il in range(len(scores))
        for ih in range(len(scores[il]))
        for pos in positions
    ]
    counts = [[0] * len(layer) for layer in scores]
    for _, il, ih, _ in sorted(entries)[:k]:
        counts[il][ih] += 1
    return counts


def equal_by_layer(n_head_kv: Sequence[int], total: int) -> list[int]:
    """Rows of each layer when the first heads get what does not divide."""
    n = sum(n_head_kv)
    each = [total // n + (i < total % n) for i in range(n)]
    rest = iter(each)
    return [sum(next(rest) for _ in range(heads)) for heads in n_head_kv]


def adakv(scores: Scores, positions: Sequence[int], safeguard: float, is_scaled: bool, total: int) -> list[list[int]]:
    """Ada-KV, https://arxiv.org/abs/2407.11550, with the released code's scaling in float32."""
    rows = []
    for layer, k in zip(scores, equal_by_layer([len(layer) for layer in scores], total), strict=True):
        n = len(layer)
        scaled = [[float(x) for x in head] for head in layer]
        if is_scaled:
            for ih, head in enumerate(layer):
                held = [float(head[pos]) for pos in positions]
                best = math.fsum(sorted(held, reverse=True)[: max(k // n, 1)])
                part = best / math.fsum(held) if math.fsum(held) > 0 else 1.0
                scaled[ih] = [float(np.float32(x) * np.float32(part)) for x in head]
        counts = top_counts([scaled], positions, k)[0]
        shares = [(1 - Fraction(safeguard)) * f + Fraction(safeguard) * Fraction(k, n) for f in counts]
        rows.append(largest_remainder(shares))
    return rows


def adakv_published(counts: Sequence[int], b: int, alpha: float) -> list[int]:
    """The released code's rows of each head."""
    return [round((1 - alpha) * f + math.floor(alpha * b)) for f in counts]


def dynamickv_published(counts: Sequence[int], bs: int, base: int, n_layer: int) -> list[int]:
    """One update of the released code, from the counts of the layers seen, already divided by their number."""
    z = [int(bs * count / sum(counts)) for count in counts]
    q = sum(z) / (base * n_layer)
    z = [math.floor(rows / q) for rows in z]
    z[-1] += base * n_layer - sum(z)
    return z


def dynamickv(scores: Scores, positions: Sequence[int], m: int, r_max: float, total: int) -> list[list[int]]:
    """DynamicKV without rounding between the steps, https://arxiv.org/abs/2412.14838."""
    n_heads = [len(layer) for layer in scores]
    n_layer, n_evictable_pos = len(scores), len(positions)
    base = Fraction(total, sum(n_heads))
    held: list[int] = []  # rows per head of each layer seen so far
    wanted: list[Fraction] = []
    for il in range(n_layer):
        held.append(min(int(Fraction(r_max) * base), n_evictable_pos))
        if (il + 1) % m and il + 1 < n_layer:
            continue
        seen = il + 1
        counts = [sum(layer) for layer in top_counts(scores[:seen], positions, int(base * sum(n_heads[:seen])))]
        of_all = sum(counts)
        ratios = [Fraction(count, of_all) if of_all else Fraction(1, seen) for count in counts]
        wanted = [ratio * total for ratio in ratios]  # rows of the whole layer: base * all heads of the model
        if seen < n_layer:
            held = [min(h, int(rows / n)) for h, rows, n in zip(held, wanted, n_heads, strict=False)]
    caps = [h * n for h, n in zip(held, n_heads, strict=True)]
    rows = largest_remainder(water_fill(wanted, [0] * n_layer, caps, min(total, sum(caps))))
    full = [n_evictable_pos * n for n in n_heads]
    rows = largest_remainder(water_fill(wanted, rows, full, total))
    return [[r // n + (ih < r % n) for ih in range(n)] for r, n in zip(rows, n_heads, strict=True)]


def taskkv_count(r: int, n_layer: int, n: int, beta: Fraction, m: Fraction) -> Fraction:
    """Equation 16 of Task-KV, https://arxiv.org/abs/2501.15113, not rounded."""
    return n * beta - (n * beta - m) / (n_layer - 1) * r if n_layer > 1 else n * beta


def taskkv_middle(budget: float, n_tokens: int, n: int, f: int, s1: int, s2: int) -> float:
    """Equation 17: middle activations of each head that is not heterogeneous."""
    return (budget - n_tokens * f) / (n - f) - s1 - s2


def taskkv_layer(distances: Sequence[float], f: int, recent: int, n_evictable_pos: int, total: int) -> list[int]:
    """Open rows of one layer's heads, `recent` of them at least; f is lowered until the rest can have that."""
    n = len(distances)
    if total < n * recent:
        return [total // n + (ih < total % n) for ih in range(n)]
    order = np.argsort(-np.asarray(distances), kind="stable").tolist()
    nearest_first = np.argsort(np.asarray(distances), kind="stable").tolist()
    for tried in range(f, 0, -1):
        chosen = order[: tried - 1] if tried > 1 else order[:1]
        if tried > 1:
            chosen = [*chosen, next(ih for ih in nearest_first if ih not in chosen)]
        others = [ih for ih in range(n) if ih not in chosen]
        left = total - len(chosen) * n_evictable_pos
        if left >= len(others) * recent:
            rows = [n_evictable_pos] * n
            for i, ih in enumerate(others):
                rows[ih] = left // len(others) + (i < left % len(others))
            return rows
    return [total - (n - 1) * recent if ih == order[0] else recent for ih in range(n)]
