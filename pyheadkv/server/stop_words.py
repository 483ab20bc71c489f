"""Words that end an answer, found in text that comes piece by piece."""

from __future__ import annotations

from collections.abc import Sequence


class StopWords:
    """Passes an answer on up to the first stop word; what may be the beginning of one is held back.

    >>> words = StopWords(["\\n\\n"])
    >>> words.feed("one\\n"), words.feed("two\\n"), words.feed("\\nthree"), words.is_found
    ('one', '\\ntwo', '', True)
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.is_found = False
        self._words = tuple(filter(None, words))
        self._held = ""

    def feed(self, text: str) -> str:
        """Text that can be shown when this has been said too."""
        text = self._held + text
        ends = [at for at in map(text.find, self._words) if at >= 0]
        if ends:
            self.is_found, self._held = True, ""
            return text[: min(ends)]
        n_held = max((self._n_begun(text, word) for word in self._words), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """What is held back: nothing more will be said."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _n_begun(text: str, word: str) -> int:
        """Characters at the end of a text with which a word begins."""
        longest = min(len(word) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if text.endswith(word[:n])), 0)
