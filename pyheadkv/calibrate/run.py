"""A whole calibration: what is to be measured, in which order, what of it is done, and the profile at the end."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyheadkv.calibrate.needles import Question
from pyheadkv.calibrate.observer import Observer
from pyheadkv.calibrate.pages import Page, make_page, n_questions
from pyheadkv.calibrate.part import Part
from pyheadkv.calibrate.prompts import Prompter
from pyheadkv.calibrate.reconstruction import make_excerpts, measure_excerpt
from pyheadkv.calibrate.result import RECONSTRUCTION, Heads, make_profile
from pyheadkv.calibrate.retrieval import measure_question
from pyheadkv.calibrate.scores import Floats
from pyheadkv.calibrate.settings import EXCERPT_ROOM, CalibrationSettings
from pyheadkv.engine.llama import context_length
from pyheadkv.files.jsonl import Record
from pyheadkv.profile import Profile

if TYPE_CHECKING:
    import llama_cpp

QUESTION_ROOM = 96  # tokens for a question and its answer
QUESTION_COST = 100  # of both, in tokens of a text read; measured, and only the time left depends on it

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Step:
    """One thing to measure, and what it costs in tokens read."""

    id: str
    cost: int
    what: str
    measure: Callable[[], Record]


def calibrate(
    llama: llama_cpp.Llama,
    settings: CalibrationSettings | None = None,
    *,
    fingerprint: str | None = None,
    part: Path | None = None,
    force: bool = False,
    on_progress: Progress | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> Profile:
    """Measure the importance of every KV head of a model, on the Llama of the caller, whose conversation is lost.

    Scores of three kinds: ``retrieval`` (R) over the questions that are answered by copying, ``retrieval-reasoning``
    (R2) over all questions, both where the model answers right, and ``reconstruction`` over excerpts of prose. The
    profile's scores are the mix that the settings ask for.

    Parameters
    ----------
    llama
        with flash attention, best made by `pyheadkv.load`
    fingerprint
        of the model file, for the profile and for `part`
    part
        file in which every result is kept as soon as it is there; what it holds is not measured again. It stays: the
        caller removes it when the profile is written
    force
        begin anew if `part` is of another calibration
    on_progress
        called with (cost done, cost of all, what comes next); costs are about proportional to time
    on_notice
        called with one line about scores that should not be relied on

    Raises
    ------
    CalibrationError
        too few questions are answered right, `part` is of another calibration, or the settings do not fit the context
    ModelError
        the model's cache cannot be compressed
    """
    settings = settings or CalibrationSettings()
    observer, prompter = Observer(llama), Prompter(llama)
    lengths = settings.within(context_length(llama))
    # settings that the records depend on; more examples, another fold and another mix can be had from what is there
    header = {"fingerprint": fingerprint, "seed": settings.seed, "lengths": lengths}
    header |= {"n_excerpts": settings.n_excerpts, "excerpt_tokens": settings.excerpt_tokens}
    kept = Part(part, header, force)
    steps = [*_question_steps(observer, prompter, settings, lengths), *_excerpt_steps(observer, prompter, settings)]
    total, done = sum(step.cost for step in steps), 0
    show = on_progress or (lambda *_: None)
    try:
        for step in steps:
            show(done, total, step.what)
            if step.id not in kept.records:
                clock = time.monotonic()
                record = step.measure()
                kept.add({"id": step.id, **record, "seconds": round(time.monotonic() - clock, 2)})
            done += step.cost
    finally:
        observer.forget()
    show(done, total, "done")
    records = [kept.records[step.id] for step in steps]
    return make_profile(
        records,
        Heads(observer.n_head, observer.n_head_kv),
        settings,
        fingerprint=fingerprint,
        seconds=sum(float(record["seconds"]) for record in records),
        on_notice=on_notice,
    )


def _question_steps(
    observer: Observer, prompter: Prompter, settings: CalibrationSettings, lengths: tuple[int, ...]
) -> Iterator[Step]:
    room = len(prompter.prompt("", "").tokens) + QUESTION_ROOM
    n_pages = -(-settings.n_examples // n_questions())
    for i in range(n_pages):
        length = lengths[i % len(lengths)]
        page = make_page(random.Random(f"{settings.seed} page {i}"), length - room, prompter.count)
        for k, question in enumerate(page.questions):
            yield Step(
                f"question {i}.{k}",
                QUESTION_COST + (length if k == 0 else 0),
                f"{length} tokens, {question.kind}",
                partial(_question_record, observer, prompter, page, question, i, length),
            )


def _excerpt_steps(observer: Observer, prompter: Prompter, settings: CalibrationSettings) -> Iterator[Step]:
    n_tokens = min(settings.excerpt_tokens, (context_length(observer.llama) - EXCERPT_ROOM) // 2)
    for i, excerpt in enumerate(make_excerpts(settings.seed, settings.n_excerpts, n_tokens, prompter.count)):
        yield Step(
            f"excerpt {i}", 2 * n_tokens, "repeating prose", partial(_excerpt_record, observer, prompter, excerpt, i)
        )


def _question_record(
    observer: Observer, prompter: Prompter, page: Page, question: Question, group: int, length: int
) -> Record:
    measured = measure_question(observer, prompter, page, question)
    record: Record = {"kind": question.kind, "group": group, "length": length, "is_right": measured.is_right}
    record |= {"wanted": question.answer, "answer": measured.answer}
    if measured.is_right:
        record |= {"copy": _rounded(measured.copy), "reasoning": _rounded(measured.reasoning)}
    return record


def _excerpt_record(observer: Observer, prompter: Prompter, excerpt: str, group: int) -> Record:
    scores = measure_excerpt(observer, prompter, excerpt)
    return {"kind": RECONSTRUCTION, "group": group, RECONSTRUCTION: _rounded(scores)}


def _rounded(scores: Floats) -> list[float]:
    return [float(f"{score:.6g}") for score in scores]
