"""A second question about a document that was read, by the stock cache and by ours, in turns in one process.

Stock has the whole cache in memory. Ours has hot rows and the archive: it makes the archive the cache again, reads the
question there and chooses rows anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pyheadkv.bench.setup import Setup
from pyheadkv.bench.speed import Spread
from pyheadkv.chat.session import HeadKV
from pyheadkv.files.jsonl import Record
from pyheadkv.policy.trial import Trial

if TYPE_CHECKING:
    import llama_cpp

# name -> how ours reads: options of HeadKV
WAYS: dict[str, dict[str, Any]] = {
    "our kernel": {},
    "exact": {"exact": True},
}


def run_follow_ups(
    setup: Setup,
    n_prompts: Sequence[int],
    n_questions: Sequence[int],
    trials: Sequence[Trial],
    on_progress: Callable[[int, int, str], None] | None = None,
) -> list[Record]:
    """Measure the time to the first token of the answer to a question, all `WAYS` of each trial against stock.

    Parameters
    ----------
    n_prompts
        tokens of the document
    n_questions
        tokens of the question
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
    runs = [(n, trial, way) for n in n_prompts for trial in trials for way in WAYS]
    total, done = sum(n for n, *_ in runs), 0
    records = []
    for n, trial, way in runs:
        if on_progress:
            on_progress(done, total, f"{n} tokens: {trial.name} {trial.budget.request}, {way}")
        records.extend(_race(setup, n, n_questions, trial, way))
        done += n
    return records


def _race(setup: Setup, n_prompt: int, n_questions: Sequence[int], trial: Trial, way: str) -> list[Record]:
    options = {"policy": trial.policy, "budget": trial.budget, "profile": trial.profile, **WAYS[way]}
    n_all = n_prompt + max(n_questions)
    with setup.open_stock(n_all) as stock, setup.open_ours(n_all) as ours, HeadKV(ours, min_prompt=0, **options):
        prompt = setup.prompt(stock, n_prompt)
        records = []
        for llama in (stock, ours):
            first_token_ms(llama, prompt)
        for n_question in n_questions:
            rounds = []
            for question in questions(setup, stock, n_question):
                rounds.append((first_token_ms(stock, prompt + question), first_token_ms(ours, prompt + question)))
            records.append(
                {
                    "model": setup.path.name,
                    "n_rounds": setup.n_rounds,
                    "n_prompt": n_prompt,
                    "n_question": n_question,
                    "policy": trial.name,
                    "budget": trial.budget.request,
                    "keep_ratio": setup.draft(trial, n_prompt + n_question).expected.keep_ratio,
                    "way": way,
                    "stock_ms": asdict(Spread.of([a for a, _ in rounds])),
                    "ours_ms": asdict(Spread.of([b for _, b in rounds])),
                    "ours_to_stock": asdict(Spread.of([b / a for a, b in rounds])),
                }
            )
    return records


def questions(setup: Setup, llama: llama_cpp.Llama, n_tokens: int) -> list[list[int]]:
    """One for each round, of token ids drawn evenly from the vocabulary; the same every time."""
    random = np.random.default_rng(setup.seed + 1)
    ids: list[list[int]] = random.integers(0, llama.n_vocab(), (setup.n_rounds, n_tokens)).tolist()
    return ids


def first_token_ms(llama: llama_cpp.Llama, tokens: list[int]) -> float:
    """What of the tokens is in the cache is not read again."""
    start = time.perf_counter()
    answer = llama.generate(tokens, temp=0.0)
    next(answer)
    answer.close()
    return (time.perf_counter() - start) * 1000
