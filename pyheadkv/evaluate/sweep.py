"""Cases x trials (a policy at a budget), measured one after the other; what is there already is not measured again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from pyheadkv.evaluate.cases import KL, Case
from pyheadkv.evaluate.metrics import LogProbs
from pyheadkv.evaluate.results import FULL, KEY, Key, Results
from pyheadkv.evaluate.runner import Outcome
from pyheadkv.files.jsonl import Record

FORMAT = 3  # of records: those of another format are measured again
MEASURE_COST = 0.3  # of one measurement, in times that its prompt takes to read; only the time left depends on it

Progress = Callable[[int, int, str], None]


class Measurer(Protocol):
    """`pyheadkv.evaluate.runner.Runner`, or something else that measures cases; readings are its own."""

    def read(self, case: Case, question: str, reference: LogProbs | None) -> Any:
        """Read a prompt; gives an object with `full`, an Outcome, and `log_probs`."""

    def measure(self, reading: Any, trial: Any) -> Outcome:
        """Compress it and let the model answer."""

    def close(self) -> None:
        """Free what a reading takes."""


@dataclass(frozen=True)
class Sweep:
    """Measurements to make.

    Parameters
    ----------
    run
        `run_mark` of model and settings
    cases
        what is asked
    trials
        each is done with each case; of the measurer's own kind, with a name and a budget
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
    trials: Sequence[Any]
    question: str
    cache: str = "f16"
    references: dict[str, LogProbs] = field(default_factory=dict)
    lends: frozenset[str] = frozenset()

    def lending_to(self, others: Sequence[Sweep], results: Results) -> Sweep:
        """The same, with what the others still need of its predictions."""
        cases = (case for case in self.cases if case.metric == KL)
        lends = frozenset(case.id for case in cases if any(other.missing(case, results) for other in others))
        return replace(self, lends=lends)

    def records(self, results: Results) -> list[Record]:
        """Those of this sweep that are there, case by case."""
        keys = [self.key(case, trial) for case in self.cases for trial in (None, *self.trials)]
        return [results.records[key] for key in keys if key in results.records]

    def missing(self, case: Case, results: Results) -> list[Any]:
        """Trials that are still to be measured with a case; None is the whole cache."""
        return [trial for trial in (None, *self.trials) if self.key(case, trial) not in results.records]

    def key(self, case: Case, trial: Any) -> Key:
        """The first fields of a record, those of `KEY`."""
        policy, budget = (trial.name, trial.budget.request) if trial else (FULL, FULL)
        return self.run, self.question, case.id, case.mark, policy, budget

    def record(self, case: Case, trial: Any, outcome: Outcome) -> Record:
        """A line of the results."""
        head = dict(zip(KEY, self.key(case, trial), strict=True))
        about = {"cache": self.cache, "task": case.task, "kind": case.kind, "length": case.length}
        depth = {"depth": case.depths[0]} if case.depths else {}
        return head | about | depth | asdict(outcome) | {"seconds": round(outcome.seconds, 2)}


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
    missing = {case: sweep.missing(case, results) for case in sweep.cases}
    todo = [case for case in sweep.cases if missing[case] or case.id in sweep.lends]
    done = 0.0
    total = sum(case.n_tokens * (1 + MEASURE_COST * sum(map(bool, missing[case]))) for case in todo)

    def show(what: str) -> None:
        if on_progress:
            on_progress(round(done), round(total), what)

    try:
        for case in todo:
            show(f"{case.task}, {case.length}: reading")
            reading = runner.read(case, sweep.question, sweep.references.get(case.id))
            if case.id in sweep.lends and reading.log_probs is not None:
                sweep.references[case.id] = reading.log_probs
            done += case.n_tokens
            for trial in missing[case]:
                if trial:
                    show(f"{case.task}, {case.length}: {trial.name} {trial.budget.request}")
                    done += MEASURE_COST * case.n_tokens
                outcome = runner.measure(reading, trial) if trial else reading.full
                results.add(sweep.record(case, trial, outcome))
    finally:
        runner.close()
    show("done")
    return sweep.records(results)


def run_mark(fingerprint: str, **settings: Any) -> str:
    """A short name for everything beside case, policy and budget that figures depend on."""
    text = json.dumps({"fingerprint": fingerprint, "format": FORMAT, **settings}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
