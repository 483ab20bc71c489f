"""Whether measured scores would come out the same again: the correlation between two halves of the examples."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from pyheadkv.calibrate.scores import Floats

N_SPLITS = 20


def split_half(values: Floats, groups: Sequence[int], seed: int) -> float | None:
    """Mean over random splits of Pearson's correlation between the mean scores of two halves.

    Parameters
    ----------
    values
        [n_example, n_head]
    groups
        [n_example]: examples of one group (a page) share a text, so they go to the same half

    Returns
    -------
    correlation, or None where there are fewer than two groups or a half has the same score everywhere
    """
    rng = random.Random(seed)
    names = sorted(set(groups))
    if len(names) < 2:
        return None
    found = []
    for _ in range(N_SPLITS):
        chosen = set(rng.sample(names, len(names) // 2))
        is_first = np.array([group in chosen for group in groups])
        first, second = values[is_first].mean(axis=0), values[~is_first].mean(axis=0)
        if np.ptp(first) == 0 or np.ptp(second) == 0:
            return None
        found.append(float(np.corrcoef(first, second)[0, 1]))
    return sum(found) / len(found)
