"""A page: prose with several needles hidden in it, read once and asked about many times."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pyheadkv.calibrate.haystack import sentences, shuffled
from pyheadkv.calibrate.needles import KINDS, Question, Supply, make_needle

NEEDLES = (*KINDS, KINDS[-1])  # of one page; the last kind is asked both ways, so four of its questions are there


@dataclass(frozen=True)
class Page:
    """The text that is read, and the questions about it."""

    text: str
    questions: tuple[Question, ...]


def make_page(rng: random.Random, n_tokens: int, count_tokens: Callable[[str], int]) -> Page:
    """Hide one needle of each kind of `NEEDLES` in prose.

    Parameters
    ----------
    n_tokens
        length of the text; it comes out shorter by less than a sentence, but holds all needles
    count_tokens
        of a sentence
    """
    supply = Supply(rng)
    needles = [make_needle(kind, supply) for kind in NEEDLES]
    parts = [part for needle in needles for part in needle.parts]
    prose = fill(shuffled(rng), n_tokens - sum(map(count_tokens, parts)), count_tokens)
    text = text_of(hide(rng, parts, prose))
    questions = [question for needle in needles for question in needle.questions]
    return Page(text, tuple(rng.sample(questions, len(questions))))


def n_questions() -> int:
    """Questions of one page."""
    return len(make_page(random.Random(0), 0, len).questions)


def text_of(prose: Iterable[Iterable[str]]) -> str:
    """Paragraphs of sentences as a text."""
    return "\n\n".join(" ".join(paragraph) for paragraph in prose)


def fill(source: Iterable[str], n_tokens: int, count_tokens: Callable[[str], int]) -> list[list[str]]:
    """Paragraphs of whole sentences, the last one cut where the tokens end.

    Parameters
    ----------
    source
        paragraphs to take from, endless or not
    count_tokens
        of a sentence
    """
    prose: list[list[str]] = []
    for paragraph in source:
        prose.append([])
        for sentence in sentences(paragraph):
            n_tokens -= count_tokens(sentence)
            if n_tokens < 0:
                return [kept for kept in prose if kept]
            prose[-1].append(sentence)
    return prose


def hide(rng: random.Random, parts: Sequence[str], prose: Sequence[Sequence[str]]) -> list[list[str]]:
    """Put each part between two sentences; the depths of all parts are spread evenly over the text."""
    places = [(i, k) for i, paragraph in enumerate(prose) for k in range(len(paragraph) + 1)] or [(0, 0)]
    hidden = [list(paragraph) for paragraph in prose] or [[]]
    slots = [(slot + rng.random()) / len(parts) for slot in range(len(parts))]
    order = rng.sample(parts, len(parts))
    # from the end on, so that places that are still needed do not move
    for depth, part in sorted(zip(slots, order, strict=True), reverse=True):
        i, k = places[int(depth * len(places))]
        hidden[i].insert(k, part)
    return hidden
