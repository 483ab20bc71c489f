"""Policies side by side: differences over the same cases, which vary far less than the cases themselves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from pyheadkv.evaluate.metrics import mean_and_error
from pyheadkv.evaluate.results import label_of
from pyheadkv.files.jsonl import Record

MAIN = ("score", "kl")  # the figures that are compared
MIN_CASES = 5  # of fewer, all alike by chance, the standard error says nothing
N_ERRORS = 2


@dataclass(frozen=True)
class Comparison:
    """Two policies at one budget.

    Parameters
    ----------
    difference, error
        mean over the cases of (first - second), and its standard error
    n
        cases that both were measured with
    """

    question: str
    task: str
    length: str
    figure: str
    budget: str
    first: str
    second: str
    n: int
    difference: float
    error: float

    @property
    def verdict(self) -> str:
        """Who is better, where that is more than chance."""
        if self.n < MIN_CASES:
            return "too few cases"
        if math.isnan(self.error) or abs(self.difference) <= N_ERRORS * self.error or self.difference == 0:
            return "no difference seen"
        is_first = (self.difference < 0) == (self.figure == "kl")  # of KL, less is better
        return f"{self.first if is_first else self.second} is better"


def comparisons(records: Sequence[Record]) -> list[Comparison]:
    """All pairs of policies (and cache types) that were measured with the same cases at the same budget."""
    has_caches = len({record["cache"] for record in records}) > 1
    groups: dict[tuple[str, str, str, str, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        for figure in MAIN:
            if figure in record["figures"]:
                key = (record["question"], record["task"], record["length"], figure, record["budget"])
                groups[key][label_of(record, has_caches)][record["case"]] = record["figures"][figure]
    return [
        Comparison(*key, first, second, len(both), *mean_and_error(both))
        for key, policies in groups.items()
        for (first, a), (second, b) in combinations(policies.items(), 2)
        if (both := [a[case] - b[case] for case in a if case in b])
    ]
