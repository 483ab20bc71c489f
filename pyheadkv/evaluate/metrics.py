"""How an answer is scored, 0 to 1, how far two predictions are apart, and how sure a mean is. No model, no files.

The scores are those of the benchmarks that they are named after; two need libraries of the extra "bench".
"""

from __future__ import annotations

import ast
import importlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyheadkv.calibrate.retrieval import plain, word_f1
from pyheadkv.errors import UsageError

LogProbs = npt.NDArray[np.float32]


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
    words = plain(output).split()
    return float(bool(words) and words[0] in map(plain, answers))


def qa_f1(output: str, answers: Sequence[str]) -> float:
    """Best F1 of words over the answers, as in SQuAD: without case, punctuation and articles."""
    return max(word_f1(output, answer) for answer in answers)


def exact(output: str, answers: Sequence[str]) -> float:
    """1 if the output is one of the answers, without case, punctuation and articles. SQuAD's exact match."""
    return float(plain(output) in map(plain, answers))


def rouge_l(output: str, answers: Sequence[str]) -> float:
    """Best ROUGE-L F over the answers: the longest common subsequence of words, without case."""
    return max(float(_rouge(output, answer).fmeasure) for answer in answers)


def rouge_l_recall(output: str, answers: Sequence[str]) -> float:
    """Best ROUGE-L recall over the answers. What LooGLE reports as ROUGE-L."""
    return max(float(_rouge(output, answer).recall) for answer in answers)


def number(output: str, answers: Sequence[str]) -> float:
    """Share of the numbers in the output that are the first number of the first answer. LongBench's retrieval score."""
    wanted = re.findall(r"\d+", answers[0])[:1]
    found = re.findall(r"\d+", output)
    return sum([n] == wanted for n in found) / len(found) if found else 0.0


def code_sim(output: str, answers: Sequence[str]) -> float:
    """Best similarity of characters with the first line that is no comment or fence. LongBench's score of code."""
    ratio = _library("code_sim").ratio
    lines = (line for line in output.lstrip("\n").split("\n") if not any(mark in line for mark in ("`", "#", "//")))
    line = next(lines, "")
    return max(float(ratio(line, answer)) / 100 for answer in answers)


def cloze(output: str, answers: Sequence[str]) -> float:
    """Share of the masks that are right; output and answer are JSON objects or Python dicts. LooGLE's exact match."""
    wanted, found = read_masks(answers[0]), read_masks(output)
    return sum(found.get(mask) == name for mask, name in wanted.items()) / len(wanted) if wanted else 0.0


def label(output: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """1 over the number of classes that the first line names, if the answer is one of them. LongBench's classification.

    A class within the name of another one that is named does not count.
    """
    line = output.lstrip("\n").partition("\n")[0].lower()
    named = [name for name in classes if name.lower() in line]
    named = [name for name in named if not any(name != other and name.lower() in other.lower() for other in named)]
    return 1 / len(named) if answers[0] in named else 0.0


def only_label(output: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """1 if the first sentence names the answer and no other class. BABILong's score.

    An answer of several parts has commas between them; then exactly these have to be named.
    """
    sentence = re.split(r"\.|<context>|<example>", output.lower())[0]
    named = {name.lower() for name in classes if name.lower() in sentence}
    return float(named == set(answers[0].lower().split(",")))


_METRICS = (all_substr, any_substr, first_word, exact, qa_f1, rouge_l, rouge_l_recall, number, code_sim, cloze)
METRICS = {metric.__name__: metric for metric in _METRICS}
CLASS_METRICS = {metric.__name__: metric for metric in (label, only_label)}
_LIBRARIES = {
    "rouge_l": ("rouge_score.rouge_scorer", "rouge-score"),
    "rouge_l_recall": ("rouge_score.rouge_scorer", "rouge-score"),
    "code_sim": ("rapidfuzz.fuzz", "rapidfuzz"),
}


def check_libraries(metrics: Iterable[str]) -> None:
    """Find out before anything is measured whether answers can be scored.

    Raises
    ------
    UsageError
        naming the library that is missing and how to get it
    """
    for metric in dict.fromkeys(metrics):
        if metric in _LIBRARIES:
            _library(metric)


def score(
    metric: str, output: str, answers: Sequence[str], first_line: bool = False, classes: Sequence[str] = ()
) -> float:
    """Score an output.

    Parameters
    ----------
    metric
        one of `METRICS` or `CLASS_METRICS`
    first_line
        leave out all after the first line, empty lines before it apart
    classes
        what the answer is chosen from, for `CLASS_METRICS`

    Raises
    ------
    UsageError
        a library is missing
    """
    text = output.lstrip("\n").partition("\n")[0] if first_line else output
    return METRICS[metric](text, answers) if metric in METRICS else CLASS_METRICS[metric](text, answers, classes)


def read_masks(text: str) -> dict[str, str]:
    """The object in a text, which must be all of it; {} if it is none."""
    for read in (json.loads, ast.literal_eval):
        try:
            masks = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return masks if isinstance(masks, dict) else {}
    return {}


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


def perplexity(log_probs: LogProbs, tokens: Sequence[int]) -> float:
    """Of a text's tokens from the second on, each predicted after those before it.

    Parameters
    ----------
    log_probs
        after each of the tokens, f32 [n_tokens, n_vocab]; of a single token nothing is predicted, and it is nan
    """
    if len(tokens) < 2:
        return math.nan
    found = log_probs[np.arange(len(tokens) - 1), list(tokens[1:])]
    return math.exp(-float(found.mean(dtype=np.float64)))


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


class _Words:
    """rouge-score's own tokenizer breaks words at every sign that is no letter or digit of English."""

    def tokenize(self, text: str) -> list[str]:
        return text.lower().split()


def _rouge(output: str, answer: str) -> Any:
    return _library("rouge_l").RougeScorer(["rougeL"], tokenizer=_Words()).score(answer, output)["rougeL"]


def _library(metric: str) -> Any:
    module, package = _LIBRARIES[metric]
    try:
        return importlib.import_module(module)
    except ImportError:
        message = f"metric {metric} needs {package}, which is missing: pip install 'pyheadkv[bench]'"
        raise UsageError(message) from None
