"""Measure a case: its prompt is read once, kept aside, and compressed anew for every policy and budget.

Question "in": the whole prompt, the beginning of the answer included, is compressed; its last tokens choose the rows.
Question "after": the prompt is compressed where the document ends; then the question is read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyheadkv.engine.llama import context_length
from pyheadkv.engine.load import opened
from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.cases import KL, Case
from pyheadkv.evaluate.engine import Engine, Snapshot
from pyheadkv.evaluate.generate import Evaluated, evaluate_case
from pyheadkv.evaluate.metrics import LogProbs
from pyheadkv.evaluate.prompted import IN, CasePrompter, Prompted
from pyheadkv.evaluate.results import FULL
from pyheadkv.evaluate.tasks.make import Sizes
from pyheadkv.model.shape import ModelShape
from pyheadkv.policy.trial import Trial

if TYPE_CHECKING:
    import llama_cpp

ROOM = 512  # positions beside a prompt: for its answer, and for cases of a file that are a little longer than they say


@dataclass(frozen=True)
class Outcome:
    """Figures of one case.

    Parameters
    ----------
    figures, output
        as of `pyheadkv.evaluate.generate.Evaluated`
    n_prompt
        tokens that were compressed
    keep_ratio
        share of their rows that was kept
    bytes_kept, bytes_full
        of these rows
    bytes_measured
        of the K and V buffers that exist when the answer is given, its rows and free cells included
    resolved
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
    bytes_measured: int
    resolved: str
    seconds: float


@dataclass(frozen=True)
class Reading:
    """A prompt that was read, and what the whole cache makes of it.

    Parameters
    ----------
    full
        the outcome without compression
    log_probs
        predictions that others are compared with, for "kl"
    """

    prompted: Prompted
    full: Outcome
    log_probs: LogProbs | None


@dataclass(frozen=True)
class CacheReading(Reading):
    """A reading whose cache was kept aside where it is to be compressed."""

    snapshot: Snapshot


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
        self.case_prompter = CasePrompter(llama)
        self.shape = shape
        self._types = {"type_k": type_k, "type_v": type_v}
        self._n_ctx = context_length(llama)

    @property
    def sizes(self) -> Sizes:
        """How long texts are for this model."""
        return self.case_prompter.sizes

    def read(self, case: Case, question: str = IN, reference: LogProbs | None = None) -> CacheReading:
        """Read a prompt and let the whole cache answer.

        Parameters
        ----------
        reference
            predictions that "kl" compares with; by default those of this whole cache

        Raises
        ------
        EvaluationError
            the prompt does not fit into the context, or cannot be cut before its question
        """
        clock = time.monotonic()
        prompted = self.case_prompter.prompt(case, question)
        if prompted.n_needed > self._n_ctx:
            raise EvaluationError(f"case {case.id} needs {prompted.n_needed} positions, the context has {self._n_ctx}")
        self.engine.read_only(prompted.tokens)
        snapshot = self.engine.snapshot()
        found = evaluate_case(self.engine, self.case_prompter.prompter, prompted, reference)
        n_prompt = len(prompted.tokens)
        full = self._outcome(found, n_prompt, 1.0, self._bytes_full(n_prompt), FULL, clock)
        return CacheReading(prompted, full, found.log_probs if reference is None else reference, snapshot)

    def measure(self, reading: CacheReading, trial: Trial) -> Outcome:
        """Compress a reading and let the model answer.

        Raises
        ------
        BudgetError, PolicyError, ProfileError
            the settings do not fit the model or the prompt
        """
        clock = time.monotonic()
        draft = trial.draft(self.shape, reading.full.n_prompt, **self._types)
        if draft is None:
            return reading.full
        plan = draft.expected
        looks_ahead = plan.policy.lookahead > 0
        if looks_ahead and reading.prompted.rest and reading.prompted.case.metric != KL:
            raise EvaluationError(f"policy {trial.name} looks ahead at the answer: not with the question after")
        self.engine.compress(reading.snapshot, draft)
        # who looks ahead must see the model's own answer, not the one that it should give
        found = evaluate_case(
            self.engine,
            self.case_prompter.prompter,
            reading.prompted,
            reading.log_probs,
            with_gold=not looks_ahead,
        )
        return self._outcome(found, plan.n_prompt, plan.keep_ratio, plan.bytes_kept, str(plan.policy), clock)

    def close(self) -> None:
        """Empty the cache."""
        self.engine.forget()

    def _outcome(
        self, found: Evaluated, n_prompt: int, keep_ratio: float, kept: int, resolved: str, clock: float
    ) -> Outcome:
        stats = self.engine.native.stats()
        full, measured = self._bytes_full(n_prompt), stats.bytes_hot + stats.bytes_tail
        seconds = time.monotonic() - clock
        return Outcome(found.figures, found.output, n_prompt, keep_ratio, kept, full, measured, resolved, seconds)

    def _bytes_full(self, n_prompt: int) -> int:
        return n_prompt * self.shape.bytes_per_token(**self._types)


@contextmanager
def open_runner(
    path: Path,
    shape: ModelShape,
    n_tokens: int,
    on_notice: Callable[[str], None],
    *,
    type_k: str = "f16",
    type_v: str = "f16",
    **options: Any,
) -> Iterator[Runner]:
    """Load a model for prompts of a length; it is freed afterwards.

    Parameters
    ----------
    options
        handed on to `pyheadkv.load`
    """
    n_ctx = min(shape.n_ctx_train, n_tokens + ROOM)
    with opened(path, n_ctx=n_ctx, type_k=type_k, type_v=type_v, on_notice=on_notice, **options) as llama:
        yield Runner(llama, shape, type_k, type_v)
