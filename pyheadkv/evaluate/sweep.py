"""Cases x trials (a policy at a budget), measured one after the other; what is there already is not measured again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from pyheadkv.evaluate.cases import KL, Case
from pyheadkv.evaluate.metrics import LogProbs
from pyheadkv.evaluate.results import FULL, Results, key_of
from pyheadkv.evaluate.runner import Outcome
from pyheadkv.files.jsonl import Record
from pyheadkv.policy.budget import Budget

FORMAT = 2  # of records: those of another format are measured again
MEASURE_COST = 0.3  # of one measurement, in times that its prompt takes to read; only the time left depends on it

Progress = Callable[[int, int, str], None]
Trial = tuple[Any, Budget]  # a contender of the measurer's kind, which has a name


class Measurer(Protocol):
    """`pyheadkv.evaluate.runner.Runner`, or something else that measures cases; readings are its own."""

    def read(self, case: Case, question: str, reference: LogProbs | None) -> Any:
        """Read a prompt; gives an object with `full`, an Outcome, and `log_probs`."""

    def measure(self, reading: Any, contender: Any, budget: Budget) -> Outcome:
        """Compress it and let the model answer."""

    def close(self) -> None:
        """Free what a reading takes."""


@dataclass(frozen=True)
class Sweep:
    """What is to be measured.

    Parameters
    ----------
    run
        `run_mark` of model and settings
    cases
        what is asked
    trials
        each is done with each case
    question
        "in" or "after"
    cache
        name of the cache types
    references
        predictions that "kl" compares with, by case; where there are none, those of the whole cache of this sweep
    lends
        cases whose predictions are put into `references`, for the sweeps after this one
    """

    run: str
    cases: Sequence[Case]
    trials: Sequence[Trial]
    question: str
    cache: str = "f16"
    references: dict[str, LogProbs] = field(default_factory=dict)
    lends: frozenset[str] = frozenset()

    def lending_to(self, others: Sequence[Sweep], results: Results) -> Sweep:
        """The same, with what the others still need of its predictions."""
        cases = (case for case in self.cases if case.metric == KL)
        lends = frozenset(case.id for case in cases if not all(other.is_done(case, results) for other in others))
        return replace(self, lends=lends)

    def records(self, results: Results) -> list[Record]:
        """Those of this sweep that are there, case by case."""
        return [found for case in self.cases for key in self._keys(case) if (found := results.records.get(key))]

    def missing(self, case: Case, results: Results) -> list[Trial]:
        """What is still to be measured with a case, the whole cache apart."""
        return [
            (contender, budget)
            for contender, budget in self.trials
            if self._key(case, contender.name, budget.request) not in results.records
        ]

    def is_done(self, case: Case, results: Results) -> bool:
        """Whether all of a case is measured."""
        return all(key in results.records for key in self._keys(case))

    def has_full(self, case: Case, results: Results) -> bool:
        """Whether the whole cache is measured with a case."""
        return self._key(case, FULL, FULL) in results.records

    def _keys(self, case: Case) -> list[tuple[str, ...]]:
        pairs = [(contender.name, budget.request) for contender, budget in self.trials]
        return [self._key(case, policy, budget) for policy, budget in [(FULL, FULL), *pairs]]

    def _key(self, case: Case, policy: str, budget: str) -> tuple[str, ...]:
        return key_of(self._head(case, policy, budget))

    def _head(self, case: Case, policy: str, budget: str) -> Record:
        what = {"run": self.run, "question": self.question, "case": case.id, "mark": case.mark}
        return what | {"policy": policy, "budget": budget}

    def record(self, case: Case, policy: str, budget: str, outcome: Outcome) -> Record:
        """A line of the results."""
        values = asdict(outcome)
        values["settled"] = values.pop("policy")  # what "auto" came to
        about = {"cache": self.cache, "task": case.task, "kind": case.kind, "length": case.length}
        depth = {"depth": case.depths[0]} if case.depths else {}
        return self._head(case, policy, budget) | about | depth | values | {"seconds": round(outcome.seconds, 2)}


def run_sweep(runner: Measurer, sweep: Sweep, results: Results, on_progress: Progress | None = None) -> list[Record]:
    """Measure what is not measured yet.

    Parameters
    ----------
    on_progress
        called with (cost done, cost of all, what comes next); costs are about proportional to time

    Returns
    -------
    the records of this sweep, those that were there included
    """
    todo = [case for case in sweep.cases if not sweep.is_done(case, results) or case.id in sweep.lends]
    costs = [case.n_tokens * (1 + MEASURE_COST * len(sweep.missing(case, results))) for case in todo]
    meter = _Meter(on_progress, sum(costs))
    try:
        for case in todo:
            meter.show(f"{case.task}, {case.length}: reading")
            reading = runner.read(case, sweep.question, sweep.references.get(case.id))
            if case.id in sweep.lends and reading.log_probs is not None:
                sweep.references[case.id] = reading.log_probs
            if not sweep.has_full(case, results):
                results.add(sweep.record(case, FULL, FULL, reading.full))
            meter.advance(case.n_tokens)
            for contender, budget in sweep.missing(case, results):
                meter.show(f"{case.task}, {case.length}: {contender.name} {budget.request}")
                outcome = runner.measure(reading, contender, budget)
                results.add(sweep.record(case, contender.name, budget.request, outcome))
                meter.advance(MEASURE_COST * case.n_tokens)
    finally:
        runner.close()
    meter.show("done")
    return sweep.records(results)


def run_mark(fingerprint: str, **settings: Any) -> str:
    """A short name for everything beside case, policy and budget that figures depend on."""
    text = json.dumps({"fingerprint": fingerprint, "format": FORMAT, **settings}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Meter:
    """Counts costs, in tokens read, for a progress bar."""

    def __init__(self, on_progress: Progress | None, total: float) -> None:
        self._call = on_progress
        self._total = total
        self._done = 0.0

    def advance(self, cost: float) -> None:
        self._done += cost

    def show(self, what: str) -> None:
        if self._call:
            self._call(round(self._done), round(self._total), what)
