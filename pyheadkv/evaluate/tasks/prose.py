"""The long text that cases are made of: the package's own prose, or a text file of the user's."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from pyheadkv.calibrate.haystack import paragraphs
from pyheadkv.errors import EvaluationError
from pyheadkv.files.plain_text import read_text

MIN_CHARACTERS = 2000


class Prose:
    """Paragraphs without end, beginning somewhere else for every seed.

    The package's own paragraphs come in a drawn order; those of a file in the file's, from a drawn one on and round
    again, so that the text stays a story.

    Parameters
    ----------
    path
        text, paragraphs apart by empty lines; None for the package's own

    Raises
    ------
    EvaluationError
        the file cannot be read, or is too short
    """

    def __init__(self, path: Path | None = None) -> None:
        self.is_own = path is None
        self._paragraphs = paragraphs() if path is None else _read(path)
        self.mark = "" if path is None else hashlib.sha256("\n".join(self._paragraphs).encode()).hexdigest()[:12]

    def draw(self, rng: random.Random) -> Iterator[str]:
        """Paragraphs for one case."""
        n = len(self._paragraphs)
        if self.is_own:
            return itertools.cycle(rng.sample(self._paragraphs, n))
        start = rng.randrange(n)
        return itertools.cycle((*self._paragraphs[start:], *self._paragraphs[:start]))


def _read(path: Path) -> tuple[str, ...]:
    text = read_text(path, EvaluationError)
    if len(text) < MIN_CHARACTERS:
        raise EvaluationError(f"{path} has {len(text)} characters, at least {MIN_CHARACTERS} are needed")
    found = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return tuple(filter(None, found))
