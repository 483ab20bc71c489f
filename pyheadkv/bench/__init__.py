"""Measure speed and memory of a compressed cache against the stock one.

    setup = Setup(path, shape, n_threads=2)
    records = run_bench(setup, [2048, 8192], [Trial("auto", parse_policy("auto"), Budget.parse("10%"), profile)])

`setup` says what is measured and on what, `speed` decodes in turns, `reading` reads a prompt in a process of its own,
`run` goes through all of it, `report` and `plots` show it; `shapes` has random models of sizes that no small model has.
"""

from __future__ import annotations

from pyheadkv.bench.run import run_bench
from pyheadkv.bench.setup import Setup
from pyheadkv.policy.trial import Trial

__all__ = ["Setup", "Trial", "run_bench"]
