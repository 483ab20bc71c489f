"""Let a model answer, or go on with prose, and score it: the same for every kind of cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pyheadkv.calibrate.prompts import Prompter
from pyheadkv.evaluate import metrics
from pyheadkv.evaluate.cases import KL, Case
from pyheadkv.evaluate.prompted import Prompted

Logits = npt.NDArray[np.float32]


class Generator(Protocol):
    """A model that has read a prompt."""

    def read(self, tokens: Sequence[int]) -> None:
        """Read tokens after those that are there."""

    def go_back(self, n_tokens: int) -> None:
        """Forget the last tokens."""

    def logits(self) -> Logits:
        """Of the token after the last one, f32 [n_vocab]; good until the next token is read."""


@dataclass(frozen=True)
class Evaluated:
    """Figures and words of an answer.

    Parameters
    ----------
    figures
        "score" and, where the answers are numbers, "digits", 0 to 1, and "loglik", nats for each token of the answer;
        or "kl" in nats, "top1", 0 to 1, "perplexity", and "ms_token", milliseconds that a token takes, the median
    output
        the answer, as far as the model was let
    log_probs
        of each token of the rest, for "kl"
    """

    figures: dict[str, float]
    output: str = ""
    log_probs: metrics.LogProbs | None = None


def evaluate_case(
    generator: Generator,
    prompter: Prompter,
    prompted: Prompted,
    reference: metrics.LogProbs | None = None,
    *,
    with_gold: bool = True,
) -> Evaluated:
    """Measure a model that has read the tokens of a case, but not the rest.

    Parameters
    ----------
    reference
        predictions to compare with, for "kl"; None compares the model with itself
    with_gold
        also measure how likely the answer is that it should give; those tokens are read and forgotten again
    """
    if prompted.case.metric == KL:
        found, ms_token = _log_probs(generator, prompted.rest)
        full = found if reference is None else reference
        figures = {"kl": metrics.kl_divergence(full, found), "top1": metrics.top1_agreement(full, found)}
        figures |= {"perplexity": metrics.perplexity(found, prompted.rest), "ms_token": ms_token}
        return Evaluated(figures, log_probs=found)
    generator.read(prompted.rest)
    first = generator.logits().copy()
    likelihood = {"loglik": _log_likelihood(generator, first, prompted.gold)} if with_gold and prompted.gold else {}
    output = _answer(generator, prompter, first, prompted.case)
    return Evaluated(_scores(prompted.case, output) | likelihood, output)


def _scores(case: Case, output: str) -> dict[str, float]:
    found = {"score": metrics.score(case.metric, output, case.answers, case.first_line, case.classes)}
    digits = metrics.digits_share(output, case.answers)
    return found if digits is None else found | {"digits": digits}


def _log_probs(generator: Generator, tokens: Sequence[int]) -> tuple[metrics.LogProbs, float]:
    """Predictions after each of the tokens, read one by one as when they are generated: [n_tokens, n_vocab].

    Returned with the milliseconds that one of them took, the median.
    """
    found, seconds = [], []
    for token in tokens:
        start = time.perf_counter()
        generator.read([token])
        logits = generator.logits()
        seconds.append(time.perf_counter() - start)
        found.append(metrics.log_softmax(logits))
    return np.array(found, dtype=np.float32), 1000 * statistics.median(seconds)


def _log_likelihood(generator: Generator, first: Logits, gold: Sequence[int]) -> float:
    """Mean log-likelihood of the tokens of an answer, in nats, each after those before it. They are forgotten again."""
    total = float(metrics.log_softmax(first)[gold[0]])
    for token, following in pairwise(gold):
        generator.read([token])
        total += float(metrics.log_softmax(generator.logits())[following])
    generator.go_back(len(gold) - 1)
    return total / len(gold)


def _answer(generator: Generator, prompter: Prompter, logits: Logits, case: Case) -> str:
    """The likeliest tokens, until the answer is complete or its outcome is settled."""
    said, text = b"", ""
    for _ in range(case.max_new_tokens):
        token = int(logits.argmax())
        if prompter.is_end(token):
            break
        said += prompter.piece(token)
        text = said.decode(errors="ignore")
        if metrics.is_settled(case.metric, text, case.answers) or (case.first_line and "\n" in text.lstrip("\n")):
            break
        generator.read([token])
        logits = generator.logits()
    return text
