"""Measure what a compressed cache is worth: needles, documents with questions, and prose, against the full cache.

    runner = Runner(llama, shape)
    cases = make_cases("single", 20, 2048, seed=0, prose=Prose(), sizes=runner.sizes)
    records = run_sweep(runner, Sweep(run, cases, trials, "in"), Results(path))

`cases` and `tasks` are what is asked, `metrics` what it is worth, `engine` and `runner` measure one case, `sweep` many
of them, `results` keeps what is done, `report` and `plots` show it, and `choose` picks the settings of a profile.
"""

from __future__ import annotations

from pyheadkv.evaluate.benchmarks import load_cases
from pyheadkv.evaluate.cases import Case, write_cases
from pyheadkv.evaluate.results import Cell, Results, cells
from pyheadkv.evaluate.runner import Outcome, Runner
from pyheadkv.evaluate.sweep import Sweep, run_mark, run_sweep
from pyheadkv.evaluate.tasks import Prose, make_cases, parse_tasks

__all__ = [
    "Case",
    "Cell",
    "Outcome",
    "Prose",
    "Results",
    "Runner",
    "Sweep",
    "cells",
    "load_cases",
    "make_cases",
    "parse_tasks",
    "run_mark",
    "run_sweep",
    "write_cases",
]
