"""Plain prose to hide needles in: the paragraphs of text/*.txt, written for this package, in seeded orders."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator
from importlib.resources import files

_SENTENCE_END = re.compile(r"(?<=[.?!]) ")


@functools.cache
def paragraphs() -> tuple[str, ...]:
    """All paragraphs, about 130 words each, without digits and without names of people."""
    texts = sorted((path.name, path) for path in files("pyheadkv.calibrate").joinpath("text").iterdir())
    joined = "\n\n".join(path.read_text(encoding="utf-8").strip() for name, path in texts if name.endswith(".txt"))
    return tuple(joined.split("\n\n"))


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph; joined by single spaces they give it back."""
    return _SENTENCE_END.split(paragraph)


def shuffled(rng: random.Random) -> Iterator[str]:
    """Paragraphs without end: each round has all of them, in another order."""
    while True:
        yield from rng.sample(paragraphs(), len(paragraphs()))
