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
from pyheadkv.evaluate.asking import Asked
from pyheadkv.evaluate.cases import KL, Case

Logits = npt.NDArray[np.float32]


class Speaker(Protocol):
    """A model that has read a prompt."""

    def read(self, tokens: Sequence[int]) -> None:
        """Read tokens after those that are there."""

    def go_back(self, n_tokens: int) -> None:
        """Forget the last tokens."""

    def logits(self) -> Logits:
        """Of the token after the last one, f32 [n_vocab]; good until the next token is read."""


@dataclass(frozen=True)
class Examined:
    """What came of it.

    Parameters
    ----------
    figures
        "score" and "loglik" and, where the answers are numbers, "digits"; or "kl", "top1", "perplexity" and
        "ms_token", milliseconds that a token takes, the median over the prose
    output
        the answer, as far as the model was let
    log_probs
        of each token of the rest, for "kl"
    """

    figures: dict[str, float]
    output: str = ""
    log_probs: metrics.LogProbs | None = None


def examine(
    speaker: Speaker,
    prompter: Prompter,
    asked: Asked,
    reference: metrics.LogProbs | None = None,
    *,
    with_gold: bool = True,
) -> Examined:
    """Measure a model that has read the tokens of a case, but not the rest.

    Parameters
    ----------
    reference
        predictions to compare with, for "kl"; None compares the model with itself
    with_gold
        also measure how likely the answer is that it should give; those tokens are read and forgotten again
    """
    if asked.case.metric == KL:
        found, ms_token = _log_probs(speaker, asked.rest)
        full = found if reference is None else reference
        figures = {"kl": metrics.kl_divergence(full, found), "top1": metrics.top1_agreement(full, found)}
        figures |= {"perplexity": metrics.perplexity(found, asked.rest), "ms_token": ms_token}
        return Examined(figures, log_probs=found)
    speaker.read(asked.rest)
    first = speaker.logits().copy()
    likelihood = {"loglik": _log_likelihood(speaker, first, asked.gold)} if with_gold and asked.gold else {}
    output = _answer(speaker, prompter, first, asked.case)
    return Examined(_scores(asked.case, output) | likelihood, output)


def _scores(case: Case, output: str) -> dict[str, float]:
    found = {"score": metrics.score(case.metric, output, case.answers, case.first_line, case.classes)}
    digits = metrics.digits_share(output, case.answers)
    return found if digits is None else found | {"digits": digits}


def _log_probs(speaker: Speaker, tokens: Sequence[int]) -> tuple[metrics.LogProbs, float]:
    """Predictions after each of the tokens, read one by one as when they are generated: [n_tokens, n_vocab].

    Returned with the milliseconds that one of them took, the median.
    """
    found, seconds = [], []
    for token in tokens:
        start = time.perf_counter()
        speaker.read([token])
        logits = speaker.logits()
        seconds.append(time.perf_counter() - start)
        found.append(metrics.log_softmax(logits))
    return np.array(found, dtype=np.float32), 1000 * statistics.median(seconds)


def _log_likelihood(speaker: Speaker, first: Logits, gold: Sequence[int]) -> float:
    """Mean log-likelihood of the tokens of an answer, in nats, each after those before it. They are forgotten again."""
    total = float(metrics.log_softmax(first)[gold[0]])
    for token, following in pairwise(gold):
        speaker.read([token])
        total += float(metrics.log_softmax(speaker.logits())[following])
    speaker.go_back(len(gold) - 1)
    return total / len(gold)


def _answer(speaker: Speaker, prompter: Prompter, logits: Logits, case: Case) -> str:
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
        speaker.read([token])
        logits = speaker.logits()
    return text
