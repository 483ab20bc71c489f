"""All measurements of a run: for each prompt length the stock cache once, and every trial against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from pyheadkv.bench.reading import Reading, read_apart
from pyheadkv.bench.setup import Setup, Trial
from pyheadkv.bench.speed import Race, Speed
from pyheadkv.jsonl import Record
from pyheadkv.plan import Plan

Progress = Callable[[int, int, str], None]
_RSS = ("rss_loaded", "rss_whole", "rss_read", "rss_decoded", "rss_peak")


def run_bench(
    setup: Setup,
    n_prompts: Sequence[int],
    trials: Sequence[Trial],
    *,
    on_progress: Progress | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Measure; what cannot be measured is refused before anything is.

    Parameters
    ----------
    n_prompts
        prompt lengths, in tokens
    on_progress
        called with (cost done, cost of all, what comes next); costs are prompts read, in tokens
    on_record
        called with each record as soon as it is there

    Returns
    -------
    a record for each length and trial: see `record_of`

    Raises
    ------
    UsageError, BudgetError, PolicyError, ProfileError
        a trial fits the model or a length not
    BenchError, ModelError, NativeError
        something could not be measured
    """
    plans = {(n, i): setup.plan(trial, n) for n in n_prompts for i, trial in enumerate(trials)}
    total, done = sum(n * (2 + len(trials)) for n in n_prompts), 0
    records: list[Record] = []

    def show(what: str) -> None:
        if on_progress:
            on_progress(done, total, what)

    for n_prompt in n_prompts:
        readings: list[Reading] = []
        for trial in (None, *trials):
            show(f"{n_prompt} tokens: reading, {trial.name if trial else 'stock'}")
            readings.append(read_apart(setup, n_prompt, trial))
            done += n_prompt
        n_ahead = max(trial.policy.lookahead for trial in trials)
        with setup.open_stock(n_prompt, n_ahead) as stock, setup.open_ours(n_prompt) as ours:
            show(f"{n_prompt} tokens: reading")
            race = Race(setup, stock, ours, n_prompt)
            done += n_prompt
            for i, trial in enumerate(trials):
                show(f"{n_prompt} tokens: decoding, {trial.name} {trial.budget.request}")
                plan = plans[(n_prompt, i)]
                records.append(record_of(setup, trial, plan, race.run(trial, plan), readings[0], readings[i + 1]))
                if on_record:
                    on_record(records[-1])
    show("done")
    return records


def record_of(setup: Setup, trial: Trial, plan: Plan, speed: Speed, stock: Reading, ours: Reading) -> Record:
    """One line of results, ready for JSON.

    Returns
    -------
    dict
        times in ms; "ms_token" and "stock_to_ours" are medians with their quartiles (low, high); bytes of K and V under
        "bytes", of whole processes under "rss"
    """
    return {
        "model": setup.path.name,
        "n_layer": setup.shape.n_layer,
        "type_k": setup.type_k,
        "type_v": setup.type_v,
        "n_threads": setup.n_threads,
        "n_gpu_layers": setup.n_gpu_layers,
        "n_tokens": setup.n_tokens,
        "n_rounds": setup.n_rounds,
        "n_prompt": plan.n_prompt,
        "policy": trial.name,
        "settled": str(plan.policy),
        "budget": trial.budget.request,
        "keep_ratio": plan.keep_ratio,
        "stock": _side(speed.ms_stock, stock) | {"tok_s": 1000 / speed.ms_stock.median},
        "ours": _side(speed.ms_ours, ours)
        | {"tok_s": 1000 / speed.ms_ours.median, "ms_scoring": speed.ms_scoring, "ms_select": ours.ms_select},
        "stock_to_ours": asdict(speed.ratio),
        "bytes": {
            "full": plan.bytes_full,
            "kept": ours.bytes_kept,
            "measured": speed.bytes_measured,
            "peak": ours.bytes_peak,
        },
    }


def _side(ms_token: Any, reading: Reading) -> Record:
    rss = {name.removeprefix("rss_"): getattr(reading, name) for name in _RSS}
    return {"ms_token": asdict(ms_token), "ms_prefill": reading.ms_prefill, "rss": rss}
