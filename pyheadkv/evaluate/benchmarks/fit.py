"""Cases of unknown length are counted, and those that are too long are cut in the middle, as LongBench does."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.cases import KL, Case
from pyheadkv.evaluate.tasks.make import Sizes, length_name

_GAP = " ... "


def fit_cases(cases: Sequence[Case], lengths: Sequence[int], sizes: Sizes) -> tuple[list[Case], int]:
    """Give cases whose length is unknown their length in tokens and its bucket, the shortest length that holds them.

    Parameters
    ----------
    lengths
        tokens of prompts; the longest is the limit

    Returns
    -------
    the cases, and how many were cut

    Raises
    ------
    EvaluationError
        a question alone is longer than the limit
    """
    fitted = [case if case.n_tokens or case.metric == KL else _fit(case, lengths, sizes) for case in cases]
    return fitted, sum(len(case.context) < len(old.context) for case, old in zip(fitted, cases, strict=True))


def _fit(case: Case, lengths: Sequence[int], sizes: Sizes) -> Case:
    n_max = max(lengths)
    n_tokens = _count(case, sizes)
    if n_tokens > n_max:
        case = _cut(case, n_max, sizes)
        n_tokens = _count(case, sizes)
    bucket = min(length for length in lengths if length >= n_tokens)
    return replace(case, n_tokens=n_tokens, bucket=length_name(bucket))


def _count(case: Case, sizes: Sizes) -> int:
    return sizes.count(case.message + case.answer_prefix) + sizes.n_frame


def _cut(case: Case, n_max: int, sizes: Sizes) -> Case:
    """The most of both ends of the context that fits."""
    halves = range(1, len(case.context) // 2 + 1)
    n = bisect_right(halves, n_max, key=lambda half: _count(_halves(case, half), sizes))
    if n == 0:
        raise EvaluationError(
            f"case {case.id}: what stands around its text alone is longer than {n_max} tokens (--ctx)"
        )
    return _halves(case, n)


def _halves(case: Case, n: int) -> Case:
    """The first and the last n characters of the context."""
    document = case.document()
    before, after = document[: len(document) - len(case.context)], case.message[len(document) :]
    context = f"{case.context[:n]}{_GAP}{case.context[len(case.context) - n :]}"
    return replace(case, context=context, prompt=f"{before}{context}{after}")
