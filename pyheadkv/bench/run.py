"""All measurements of a run: for each prompt length the stock cache once, and every trial against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from pyheadkv.bench.reading import Reading, read_apart
from pyheadkv.bench.setup import Setup
from pyheadkv.bench.speed import Race, Speed, Spread
from pyheadkv.files.jsonl import Record
from pyheadkv.policy.plan import Plan
from pyheadkv.policy.trial import Trial

Progress = Callable[[int, int, str], None]
_SETTINGS = ("type_k", "type_v", "n_threads", "n_gpu_layers", "n_tokens", "n_rounds")


def run_bench(
    setup: Setup,
    n_prompts: Sequence[int],
    trials: Sequence[Trial],
    *,
    with_memory: bool = True,
    on_progress: Progress | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Measure; what cannot be measured is refused before anything is.

    Parameters
    ----------
    n_prompts
        prompt lengths, in tokens
    with_memory
        measure the memory of processes too: each trial then reads its prompt in a process of its own
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
    drafts = {(n, i): setup.draft(trial, n) for n in n_prompts for i, trial in enumerate(trials)}
    apart = (None, *trials) if with_memory else ()
    total, done = sum(n_prompts) * (1 + len(apart)), 0
    records: list[Record] = []

    def show(what: str) -> None:
        if on_progress:
            on_progress(done, total, what)

    for n_prompt in n_prompts:
        readings: list[Reading] = []
        for trial in apart:
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
                draft = drafts[(n_prompt, i)]
                pair = (readings[0], readings[i + 1]) if readings else None
                records.append(record_of(setup, trial, draft.expected, race.ms_prefill, race.run(trial, draft), pair))
                if on_record:
                    on_record(records[-1])
    show("done")
    return records


def record_of(
    setup: Setup, trial: Trial, plan: Plan, ms_prefill: float, speed: Speed, apart: tuple[Reading, Reading] | None
) -> Record:
    """One line of results, ready for JSON.

    Parameters
    ----------
    apart
        what stock and ours needed in processes of their own, where that was measured

    Returns
    -------
    dict
        times in ms; "ms_token" and "stock_to_ours" are medians with their quartiles (low, high); bytes of K and V under
        "bytes", of whole processes under "rss", where they were measured
    """
    stock, ours = apart or (None, None)
    choosing = {"ms_scoring": speed.ms_scoring, "ms_select": ours.ms_select if ours else speed.ms_select}
    return {
        "model": setup.path.name,
        "n_layer": setup.shape.n_layer,
        **{name: getattr(setup, name) for name in _SETTINGS},
        "n_prompt": plan.n_prompt,
        "policy": trial.name,
        "resolved": str(plan.policy),
        "budget": trial.budget.request,
        "keep_ratio": plan.keep_ratio,
        "stock": {"ms_prefill": ms_prefill} | _side(speed.ms_stock, stock),
        "ours": _side(speed.ms_ours, ours) | choosing,
        "stock_to_ours": asdict(speed.ratio),
        "bytes": {
            "full": plan.bytes_full,
            "kept": plan.bytes_kept,
            "measured": speed.bytes_measured,
            "peak": ours.bytes_peak if ours else None,
        },
    }


def _side(ms_token: Spread, reading: Reading | None) -> Record:
    times = {"ms_token": asdict(ms_token), "tok_s": 1000 / ms_token.median}
    if reading is None:
        return times
    return times | {"ms_prefill": reading.ms_prefill, "rss": reading.rss}
