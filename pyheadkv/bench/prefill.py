"""Reading a prompt, by the stock cache and by ours, in turns in one process; ours chooses its rows as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pyheadkv.bench.reading import N_WARM_UP, read_apart, read_from_disk
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
    with_memory: bool = True,
) -> list[Record]:
    """Measure all `WAYS` of each trial against stock.

    Parameters
    ----------
    on_progress
        called with (cost done, cost of all, what comes next); costs are tokens read
    with_memory
        of processes too, each of which reads the prompt once, ours as `HeadKV` does by default

    Returns
    -------
    a record for each length, trial and way: times in ms with their quartiles, "ours_to_stock" of each round's pair,
    bytes of K and V at the peak and of a whole cache, bytes that were read from a disk meanwhile (the most of a round),
    and "rss_peak", those of a whole process at its peak, of stock and ours

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
        is_default = not WAYS[way]
        rss = _rss_peak(setup, n, trial) if with_memory and is_default else [None, None]
        records.append(_race(setup, n, trial, way) | {"rss_peak": rss})
        done += n
    return records


def _race(setup: Setup, n_prompt: int, trial: Trial, way: str) -> Record:
    options = {"policy": trial.policy, "budget": trial.budget, "profile": trial.profile, **WAYS[way]}
    rounds = [_round(setup, n_prompt, trial, options) for _ in range(setup.n_rounds)]
    plan = rounds[0].plan
    return {
        "model": setup.path.name,
        "n_layer": setup.shape.n_layer,
        "n_rounds": setup.n_rounds,
        "n_prompt": n_prompt,
        "policy": trial.name,
        "budget": trial.budget.request,
        "keep_ratio": plan.keep_ratio,
        "way": way,
        "stock_ms": asdict(Spread.of([one.stock.ms for one in rounds])),
        "ours_ms": asdict(Spread.of([one.ours.ms for one in rounds])),
        "ours_to_stock": asdict(Spread.of([one.ours.ms / one.stock.ms for one in rounds])),
        "stock_disk": max((one.stock.disk for one in rounds if one.stock.disk is not None), default=None),
        "ours_disk": max((one.ours.disk for one in rounds if one.ours.disk is not None), default=None),
        "bytes_peak": max(one.bytes_peak for one in rounds),
        "bytes_full": plan.bytes_full,
    }


def _rss_peak(setup: Setup, n_prompt: int, trial: Trial) -> list[int | None]:
    """Bytes of a process at its peak, of stock and ours."""
    return [read_apart(setup, n_prompt, which).rss["peak"] for which in (None, trial)]


@dataclass(frozen=True)
class _Read:
    ms: float
    disk: int | None  # bytes


@dataclass(frozen=True)
class _Round:
    plan: Plan
    stock: _Read
    ours: _Read
    bytes_peak: int


def _round(setup: Setup, n_prompt: int, trial: Trial, options: dict[str, Any]) -> _Round:
    """Stock and ours, with caches of their own: what memory a cache happens to get makes up to a fifth of its time."""
    with (
        setup.open_stock(n_prompt) as stock,
        setup.open_ours(n_prompt) as ours,
        HeadKV(ours, min_prompt=0, **options) as headkv,
    ):
        prompt = setup.prompt(stock, n_prompt)
        for llama in (stock, ours):  # weights are in memory then
            llama.eval(prompt[:N_WARM_UP])
        by_stock, by_ours = _read(stock, prompt), _read(ours, prompt, headkv.native.reset_peak)
        if headkv.plan is None:
            raise no_memory_error(trial)
        return _Round(headkv.plan, by_stock, by_ours, headkv.native.stats().bytes_peak)


def _read(llama: llama_cpp.Llama, prompt: list[int], begin: Callable[[], None] = lambda: None) -> _Read:
    empty(llama)
    begin()
    disk, start = read_from_disk(), time.perf_counter()
    llama.eval(prompt)
    finish(llama)
    ms, after = (time.perf_counter() - start) * 1000, read_from_disk()
    return _Read(ms, None if disk is None or after is None else after - disk)
