"""How far texts are the same: what of a cache can be used for another prompt."""

from __future__ import annotations

from collections.abc import Sequence


def n_same(*texts: Sequence[object]) -> int:
    """Items at the beginning that all have, tokens or messages.

    >>> n_same([1, 2, 3], [1, 2, 4, 5]), n_same([1], [1, 2]), n_same([], [1])
    (2, 1, 0)
    """
    each = enumerate(zip(*texts, strict=False))
    return next((n for n, items in each if any(item != items[0] for item in items[1:])), min(map(len, texts)))
