"""Opening a capsule and asking a question, beside reading the document of the capsule: in turns in one process."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyheadkv.bench.follow_up import first_token_ms, questions
from pyheadkv.bench.setup import Setup
from pyheadkv.bench.speed import Spread
from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.llama import empty
from pyheadkv.files.jsonl import Record
from pyheadkv.policy.trial import Trial

WAYS = ("warm", "cold")  # what the page cache has of the file


def run_capsules(
    setup: Setup,
    n_prompts: Sequence[int],
    n_questions: Sequence[int],
    trials: Sequence[Trial],
    on_progress: Callable[[int, int, str], None] | None = None,
) -> list[Record]:
    """Measure the time from opening a capsule to the first token of the answer to a question.

    Stock reads the document and the question. The model is loaded on both sides, and so are the weights.

    Parameters
    ----------
    n_prompts, n_questions
        tokens of the document and of the question
    on_progress
        called with (cost done, cost of all, what comes next); costs are tokens read

    Returns
    -------
    a record for each length, trial, way and question: times in ms with their quartiles, "ours_to_stock" of each round's
    pair

    Raises
    ------
    UsageError, BudgetError, PolicyError, ProfileError
        a trial fits the model or a length not; nothing is measured then
    """
    for n in n_prompts:
        for trial in trials:
            setup.draft(trial, n + max(n_questions))
    runs = [(n, m, trial, way) for n in n_prompts for trial in trials for m in n_questions for way in WAYS]
    total, done = sum(n for n, *_ in runs), 0
    records = []
    with tempfile.TemporaryDirectory(prefix="pyheadkv-") as folder:
        for n, m, trial, way in runs:
            if on_progress:
                on_progress(done, total, f"{n} tokens, a question of {m}: {trial.name} {trial.budget.request}, {way}")
            records.append(_race(setup, n, m, trial, way, Path(folder)))
            done += n
    return records


def _race(setup: Setup, n_prompt: int, n_question: int, trial: Trial, way: str, folder: Path) -> Record:
    options = {"policy": trial.policy, "budget": trial.budget, "profile": trial.profile}
    n_all = n_prompt + n_question
    path = folder / f"{n_prompt}.hkv"
    rounds = []
    with setup.open_stock(n_all) as stock:
        prompt = setup.prompt(stock, n_prompt)
        if not path.exists():
            _write(setup, n_all, prompt, options, path)
        for question in questions(setup, stock, n_question):
            asked = prompt + question
            empty(stock)
            rounds.append((first_token_ms(stock, asked), _open_ms(setup, n_all, asked, options, path, way)))
    return {
        "model": setup.path.name,
        "n_rounds": setup.n_rounds,
        "n_prompt": n_prompt,
        "n_question": n_question,
        "policy": trial.name,
        "budget": trial.budget.request,
        "keep_ratio": setup.draft(trial, n_all).expected.keep_ratio,
        "way": way,
        "bytes": path.stat().st_size,
        "stock_ms": asdict(Spread.of([a for a, _ in rounds])),
        "ours_ms": asdict(Spread.of([b for _, b in rounds])),
        "ours_to_stock": asdict(Spread.of([b / a for a, b in rounds])),
    }


def _write(setup: Setup, n_ctx: int, prompt: list[int], options: dict[str, Any], path: Path) -> None:
    with setup.open_ours(n_ctx) as llama, HeadKV(llama, min_prompt=0, **options) as headkv:
        first_token_ms(llama, prompt)
        headkv.save(path)


def _open_ms(setup: Setup, n_ctx: int, asked: list[int], options: dict[str, Any], path: Path, way: str) -> float:
    with setup.open_ours(n_ctx) as llama, HeadKV(llama, min_prompt=0, **options) as headkv:
        llama.eval(asked[:64])  # weights are in memory then
        _fill_page_cache(path) if way == "warm" else _leave_page_cache(path)
        start = time.perf_counter()
        headkv.load(path)
        return (time.perf_counter() - start) * 1000 + first_token_ms(llama, asked)


def _fill_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass


def _leave_page_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
