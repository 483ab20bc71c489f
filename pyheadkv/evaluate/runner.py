"""Measure a case: its prompt is read once, kept aside, and compressed anew for every policy and budget.

Question "in": the whole prompt, the beginning of the answer included, is compressed; its last tokens choose the rows.
Question "after": the prompt is compressed where the document ends; then the question is read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyheadkv.budget import Budget
from pyheadkv.calibrate.prompts import Prompter
from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate import metrics
from pyheadkv.evaluate.cases import KL, Case
from pyheadkv.evaluate.engine import Engine, Kept
from pyheadkv.evaluate.tasks.make import Sizes
from pyheadkv.plan import make_plan
from pyheadkv.policy import Policy
from pyheadkv.profile import Profile
from pyheadkv.shape import ModelShape

if TYPE_CHECKING:
    import llama_cpp

IN, AFTER = "in", "after"
QUESTIONS = (IN, AFTER)


@dataclass(frozen=True)
class Contender:
    """A policy with the head scores that go with it, under a name."""

    name: str
    policy: Policy
    profile: Profile | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Parameters
    ----------
    figures
        "score" and, where the answers are numbers, "digits", 0 to 1; or "kl" in nats and "top1", 0 to 1
    output
        the answer, as far as the model was let
    n_prompt
        tokens that were compressed
    keep_ratio
        share of their rows that was kept
    bytes_kept, bytes_full
        of these rows
    policy
        the text of the policy in use, where that was looked up ("auto")
    seconds
        that it took
    """

    figures: dict[str, float]
    output: str
    n_prompt: int
    keep_ratio: float
    bytes_kept: int
    bytes_full: int
    policy: str
    seconds: float


@dataclass(frozen=True)
class Reading:
    """A prompt that was read, and what the whole cache makes of it.

    Parameters
    ----------
    kept
        the cache where it is to be compressed
    rest
        tokens that come after
    full
        the outcome without compression
    log_probs
        of each token after `rest`, for "kl"
    """

    case: Case
    kept: Kept
    rest: list[int]
    full: Outcome
    log_probs: metrics.LogProbs | None


class Runner:
    """Measures cases on the Llama of the caller, whose conversation is lost.

    Parameters
    ----------
    llama
        with flash attention, best made by `pyheadkv.load`
    shape
        of its model
    type_k, type_v
        its cache types, for bytes

    Raises
    ------
    ModelError
        the model's cache cannot be compressed
    """

    def __init__(self, llama: llama_cpp.Llama, shape: ModelShape, type_k: str = "f16", type_v: str = "f16") -> None:
        self.engine = Engine(llama)
        self.prompter = Prompter(llama)
        self.shape = shape
        self._types = {"type_k": type_k, "type_v": type_v}
        self._n_ctx = llama.n_ctx()

    @property
    def sizes(self) -> Sizes:
        """How long texts are for this model."""
        return Sizes(self.prompter.count, len(self.prompter.prompt("", "").tokens))

    def read(self, case: Case, question: str = IN) -> Reading:
        """Read a prompt and let the whole cache answer.

        Raises
        ------
        EvaluationError
            the prompt does not fit into the context, or cannot be cut before its question
        """
        clock = time.monotonic()
        tokens, rest = self._tokens(case, question)
        n_needed = len(tokens) + len(rest) + case.max_new_tokens
        if n_needed > self._n_ctx:
            raise EvaluationError(f"case {case.id} needs {n_needed} positions, the context has {self._n_ctx}")
        self.engine.read(tokens)
        kept = self.engine.keep_aside()
        log_probs = self._log_probs(rest) if case.metric == KL else None
        figures, output = self._figures(case, rest, log_probs, log_probs)
        n_bytes = len(tokens) * self.shape.bytes_per_token(**self._types)
        full = Outcome(figures, output, len(tokens), 1.0, n_bytes, n_bytes, "full", time.monotonic() - clock)
        return Reading(case, kept, rest, full, log_probs)

    def measure(self, reading: Reading, contender: Contender, budget: Budget) -> Outcome:
        """Compress a reading and let the model answer.

        Raises
        ------
        BudgetError, PolicyError, ProfileError
            the settings do not fit the model or the prompt
        """
        clock = time.monotonic()
        n_prompt, profile = reading.full.n_prompt, contender.profile
        plan = make_plan(self.shape, contender.policy, budget, n_prompt, profile=profile, **self._types)
        if plan is None:
            return reading.full
        if plan.policy.lookahead and reading.rest and reading.case.metric != KL:
            raise EvaluationError(f"policy {contender.name} looks ahead at the answer: not with the question after")
        self.engine.compress(reading.kept, plan)
        figures, output = self._after(reading)
        return Outcome(
            figures,
            output,
            n_prompt,
            plan.keep_ratio,
            plan.bytes_kept,
            plan.bytes_full,
            str(plan.policy),
            time.monotonic() - clock,
        )

    def measure_kept(self, reading: Reading, positions: Sequence[npt.ArrayLike], n_obs: int) -> dict[str, float]:
        """The figures with rows that were chosen elsewhere, as `Native.keep` takes them."""
        self.engine.compress_to(reading.kept, positions, n_obs)
        return self._after(reading)[0]

    def close(self) -> None:
        """Empty the cache."""
        self.engine.forget()

    def _tokens(self, case: Case, question: str) -> tuple[list[int], list[int]]:
        """What is to be compressed, and what comes after it."""
        if case.metric == KL:
            tokens = self.engine.llama.tokenize(case.context.encode(), special=False)
            n_all = case.n_tokens + case.max_new_tokens
            if len(tokens) < n_all:
                raise EvaluationError(f"case {case.id} has {len(tokens)} tokens of prose, {n_all} are needed")
            return tokens[: case.n_tokens], tokens[case.n_tokens : n_all]
        prompt = self.prompter.prompt(case.message, case.answer_prefix)
        if question == IN:
            return prompt.tokens, []
        document = case.document()
        end = len(prompt.text[: prompt.text.index(document) + len(document)].encode())
        n_document = int(np.searchsorted(prompt.ends, end, side="right"))
        return prompt.tokens[:n_document], prompt.tokens[n_document:]

    def _after(self, reading: Reading) -> tuple[dict[str, float], str]:
        log_probs = self._log_probs(reading.rest) if reading.case.metric == KL else None
        return self._figures(reading.case, reading.rest, reading.log_probs, log_probs)

    def _figures(
        self, case: Case, rest: list[int], full: metrics.LogProbs | None, found: metrics.LogProbs | None
    ) -> tuple[dict[str, float], str]:
        if full is not None and found is not None:
            return {"kl": metrics.kl_divergence(full, found), "top1": metrics.top1_agreement(full, found)}, ""
        self.engine.go_on(rest)
        output = self._answer(case)
        figures = {"score": metrics.score(case.metric, output, case.answers, case.first_line)}
        digits = metrics.digits_share(output, case.answers)
        return figures if digits is None else figures | {"digits": digits}, output

    def _log_probs(self, tokens: list[int]) -> metrics.LogProbs:
        """Predictions after each of the tokens, read one by one as when they are generated: [n_tokens, n_vocab]."""
        found = np.empty((len(tokens), self.engine.llama.n_vocab()), dtype=np.float32)
        for i, token in enumerate(tokens):
            self.engine.go_on([token])
            found[i] = metrics.log_softmax(self.engine.logits())
        return found

    def _answer(self, case: Case) -> str:
        """The likeliest tokens, until the answer is complete or its outcome is settled."""
        said, text = b"", ""
        for _ in range(case.max_new_tokens):
            token = int(self.engine.logits().argmax())
            if self.prompter.is_end(token):
                break
            said += self.prompter.piece(token)
            text = said.decode(errors="ignore")
            if metrics.is_settled(case.metric, text, case.answers) or (case.first_line and "\n" in text.lstrip("\n")):
                break
            self.engine.go_on([token])
        return text
