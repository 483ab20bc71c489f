"""Head scores of a calibration, in plain loops: HeadKV's R and R2 (arXiv 2410.19258, eq. 1 and 2), KVzip by head.

Attention comes as nested lists: [step][query head][prompt position].
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

Row = Sequence[float]


def retrieval_score(
    attention: Sequence[Sequence[Row]], span: Sequence[int], prompt: Sequence[int], answer: Sequence[int]
) -> list[float]:
    """R of each head: 1/N for each step whose largest weight is in the span, on the very token that is generated."""
    scores = [0.0] * len(attention[0])
    for heads, token in zip(attention, answer, strict=True):
        for h, row in enumerate(heads):
            j = max(range(len(row)), key=lambda p: (row[p], -p))
            if j in span and prompt[j] == token:
                scores[h] += 1 / len(span)
    return scores


def reasoning_score(attention: Sequence[Sequence[Row]], span: Sequence[int]) -> list[float]:
    """R2 of each head: of the N largest weights of each step, those inside the span, divided by N."""
    scores = [0.0] * len(attention[0])
    for heads in attention:
        for h, row in enumerate(heads):
            largest = sorted(range(len(row)), key=lambda p: (-row[p], p))[: len(span)]
            scores[h] += sum(row[p] for p in largest if p in span) / len(span)
    return scores


def reconstruction_score(attention: Sequence[Row], n_head_kv: int, positions: Sequence[int]) -> list[float]:
    """For each KV head: the mean over positions of the largest weight that any query head of the group gave them."""
    n_gqa = len(attention) // n_head_kv
    groups = [attention[ih * n_gqa : (ih + 1) * n_gqa] for ih in range(n_head_kv)]
    return [mean(max(row[p] for row in group) for p in positions) for group in groups]


def fold_scores(scores: Row, n_head: Sequence[int], n_head_kv: Sequence[int], fold: str) -> list[float]:
    """Query heads, layer after layer, to KV heads."""
    folded, first = [], 0
    for n, n_kv in zip(n_head, n_head_kv, strict=True):
        for ih in range(n_kv):
            group = [scores[first + h] for h in range(n) if h // (n // n_kv) == ih]
            folded.append(max(group) if fold == "max" else sum(group))
        first += n
    return folded


def pearson(x: Row, y: Row) -> float:
    """Pearson's correlation."""
    mx, my = mean(x), mean(y)
    cov = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return cov / (sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)) ** 0.5
