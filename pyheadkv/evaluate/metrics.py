"""How an answer is scored, 0 to 1, how far two predictions are apart, and how sure a mean is. No model, no files."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

LogProbs = npt.NDArray[np.float32]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def all_substr(output: str, answers: Sequence[str]) -> float:
    """Share of the answers that stand in the output; upper and lower case are the same. RULER's string_match_all."""
    found = output.lower()
    return sum(answer.lower() in found for answer in answers) / len(answers)


def any_substr(output: str, answers: Sequence[str]) -> float:
    """1 if one of the answers stands in the output. RULER's string_match_part."""
    found = output.lower()
    return float(any(answer.lower() in found for answer in answers))


def first_word(output: str, answers: Sequence[str]) -> float:
    """1 if the first word of the output is one of the answers."""
    words = _plain(output).split()
    return float(bool(words) and words[0] in map(_plain, answers))


def qa_f1(output: str, answers: Sequence[str]) -> float:
    """Best F1 of words over the answers, as in SQuAD: without case, punctuation and articles."""
    return max(_f1(_plain(output).split(), _plain(answer).split()) for answer in answers)


def rouge_l(output: str, answers: Sequence[str]) -> float:
    """Best ROUGE-L F over the answers: the longest common subsequence of words, without case."""
    return max(_rouge_l(output.lower().split(), answer.lower().split()) for answer in answers)


def number(output: str, answers: Sequence[str]) -> float:
    """Share of the numbers in the output that are the first number of the first answer. LongBench's retrieval score."""
    wanted = re.findall(r"\d+", answers[0])[:1]
    found = re.findall(r"\d+", output)
    return sum([n] == wanted for n in found) / len(found) if found else 0.0


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "all_substr": all_substr,
    "any_substr": any_substr,
    "first_word": first_word,
    "qa_f1": qa_f1,
    "rouge_l": rouge_l,
    "number": number,
}


def score(metric: str, output: str, answers: Sequence[str], first_line: bool = False) -> float:
    """Score an output.

    Parameters
    ----------
    metric
        one of `METRICS`
    first_line
        leave out all after the first line, empty lines before it apart
    """
    return METRICS[metric](output.lstrip("\n").partition("\n")[0] if first_line else output, answers)


def digits_share(output: str, answers: Sequence[str]) -> float | None:
    """Share of the answers' digits that are right, each in its place, in the number of the output that fits best.

    Returns
    -------
    None where the answers are not all numbers
    """
    if not all(answer.isdigit() for answer in answers):
        return None
    found = re.findall(r"\d+", output)
    right = [max((sum(map(str.__eq__, answer, n)) for n in found), default=0) for answer in answers]
    return sum(right) / sum(map(len, answers))


def is_settled(metric: str, output: str, answers: Sequence[str]) -> bool:
    """Whether nothing that still comes would count: all answers are there, or another number than the only answer."""
    if metric not in ("all_substr", "any_substr"):
        return False
    if METRICS[metric](output, answers) == 1.0:
        return True
    if len(answers) > 1 or not answers[0].isdigit():
        return False
    n = len(answers[0])  # a number that goes on at the end may still become the answer; one that is too long cannot
    return re.search(rf"\d{{{n + 1}}}|(?<!\d)\d{{{n}}}(?=\D)", output) is not None


def kl_divergence(full: LogProbs, other: LogProbs) -> float:
    """Mean over the tokens of KL(full || other), in nats.

    Parameters
    ----------
    full, other
        log probabilities, [n_tokens, n_vocab]
    """
    p, q = full.astype(np.float64), other.astype(np.float64)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def top1_agreement(full: LogProbs, other: LogProbs) -> float:
    """Share of the tokens for which both hold the same next token for the likeliest."""
    return float((full.argmax(axis=1) == other.argmax(axis=1)).mean())


def log_softmax(logits: npt.NDArray[np.float32]) -> LogProbs:
    """Log probabilities of one token's logits, [n_vocab]."""
    shifted = logits.astype(np.float64) - logits.max()
    return np.asarray(shifted - math.log(np.exp(shifted).sum()), dtype=np.float32)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (sample standard deviation over the root of n; nan for a single value)."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _plain(text: str) -> str:
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def _f1(found: list[str], wanted: list[str]) -> float:
    n_same = sum((Counter(found) & Counter(wanted)).values())
    return 2 * n_same / (len(found) + len(wanted)) if n_same else 0.0


def _rouge_l(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return 0.0
    row = [0] * (len(wanted) + 1)  # row[j]: longest common subsequence with the first j wanted words
    for word in found:
        diagonal = 0
        for j, other in enumerate(wanted, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(found) + len(wanted))
