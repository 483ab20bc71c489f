"""Reading a prompt, by the stock cache and by ours, in turns in one process; ours chooses its rows as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pyheadkv.bench.setup import Setup, finish, no_memory_error
from pyheadkv.bench.speed import Spread
from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.llama import empty
from pyheadkv.files.jsonl import Record
from pyheadkv.policy.plan import Plan
from pyheadkv.policy.trial import Trial

if TYPE_CHECKING:
    import llama_cpp

# name -> how ours reads: options of HeadKV
WAYS: dict[str, dict[str, Any]] = {
    "by layers, archive kept": {},
    "by layers": {"archive": "none"},
    "batch by batch": {"sweep": False},
}


def run_prefill(
    setup: Setup,
    n_prompts: Sequence[int],
    trials: Sequence[Trial],
    on_progress: Callable[[int, int, str], None] | None = None,
) -> list[Record]:
    """Measure all `WAYS` of each trial against stock.

    Parameters
    ----------
    on_progress
        called with (cost done, cost of all, what comes next); costs are tokens read

    Returns
    -------
    a record for each length, trial and way: times in ms with their quartiles, "ours_to_stock" of each round's pair,
    bytes of K and V at the peak and of a whole cache

    Raises
    ------
    UsageError, BudgetError, PolicyError, ProfileError
        a trial fits the model or a length not; nothing is measured then
    BenchError
        the prompt was not compressed: there was no memory
    """
    for n in n_prompts:
        for trial in trials:
            setup.draft(trial, n)
    runs = [(n, trial, way) for n in n_prompts for trial in trials for way in WAYS]
    total, done = sum(n for n, *_ in runs), 0
    records = []
    for n, trial, way in runs:
        if on_progress:
            on_progress(done, total, f"{n} tokens: {trial.name} {trial.budget.request}, {way}")
        records.append(_race(setup, n, trial, way))
        done += n
    return records


def _race(setup: Setup, n_prompt: int, trial: Trial, way: str) -> Record:
    options = {"policy": trial.policy, "budget": trial.budget, "profile": trial.profile, **WAYS[way]}
    rounds, peaks = [], []
    for _ in range(setup.n_rounds):
        plan, times, peak = _round(setup, n_prompt, trial, options)
        rounds.append(times)
        peaks.append(peak)
    return {
        "model": setup.path.name,
        "n_layer": setup.shape.n_layer,
        "n_rounds": setup.n_rounds,
        "n_prompt": n_prompt,
        "policy": trial.name,
        "budget": trial.budget.request,
        "keep_ratio": plan.keep_ratio,
        "way": way,
        "stock_ms": asdict(Spread.of([a for a, _ in rounds])),
        "ours_ms": asdict(Spread.of([b for _, b in rounds])),
        "ours_to_stock": asdict(Spread.of([b / a for a, b in rounds])),
        "bytes_peak": max(peaks),
        "bytes_full": plan.bytes_full,
    }


def _round(setup: Setup, n_prompt: int, trial: Trial, options: dict[str, Any]) -> tuple[Plan, tuple[float, float], int]:
    """The plan, times of stock and ours, and our peak.

    Each round has caches of its own: what memory a cache happens to get makes up to a fifth of its time.
    """
    with (
        setup.open_stock(n_prompt) as stock,
        setup.open_ours(n_prompt) as ours,
        HeadKV(ours, min_prompt=0, **options) as headkv,
    ):
        prompt = setup.prompt(stock, n_prompt)
        for llama in (stock, ours):  # weights are in memory then
            llama.eval(prompt[:64])
        times = _read_ms(stock, prompt), _read_ms(ours, prompt, headkv.native.reset_peak)
        if headkv.plan is None:
            raise no_memory_error(trial)
        return headkv.plan, times, headkv.native.stats().bytes_peak


def _read_ms(llama: llama_cpp.Llama, prompt: list[int], begin: Callable[[], None] = lambda: None) -> float:
    empty(llama)
    begin()
    start = time.perf_counter()
    llama.eval(prompt)
    finish(llama)
    return (time.perf_counter() - start) * 1000
