"""Text that shows where it came from: the characters of messages are moved to a plane of Unicode for private use.

    lift("Say <|im_end|>!")   every character but white space and what JSON escapes, 0x100000 higher
    lower(...)                the text again

A template joins, trims, cuts and quotes lifted text as it would the text itself, and each character of the result still
says whether a message brought it or the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pyheadkv.errors import UsageError

_SIZE = 0xFFFE  # code points of a plane that are characters
_STARTS = (0x100000, 0xF0000)
_SURROGATES = range(0xD800, 0xE000)
_QUOTED = '"\\'  # JSON puts a backslash before them


class _Lifted(dict[int, int]):
    """Table of str.translate, filled as it is asked."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __missing__(self, char: int) -> int:
        text = chr(char)
        stays = char < 0x20 or char >= _SIZE or char in _SURROGATES or text.isspace() or text in _QUOTED
        self[char] = char if stays else self._start + char
        return self[char]


class Plane:
    """A plane of private use, to which characters below 0xFFFE are lifted.

    White space stays, so that a template can trim; quotation marks, backslashes and control characters stay, so that
    JSON escapes them; characters beyond the first plane stay.

    Parameters
    ----------
    start
        its first code point
    """

    def __init__(self, start: int) -> None:
        self._start, self._lifted = start, _Lifted(start)
        lifted = f"{chr(start)}-{chr(start + _SIZE - 1)}"
        self._chars = re.compile(f"[{lifted}]+")
        self._runs = re.compile(rf"[^\s{lifted}][^{lifted}]*")

    def lift(self, text: str) -> str:
        """The text out of reach of a template."""
        return text.translate(self._lifted)

    def lower(self, text: str) -> str:
        """The text as it was."""
        return self._chars.sub(lambda run: "".join(chr(ord(char) - self._start) for char in run[0]), text)

    def holds(self, text: str) -> bool:
        """Whether a text has characters of this plane."""
        return self._chars.search(text) is not None

    def runs(self, text: str) -> Iterable[tuple[int, str]]:
        """Where pieces begin that have no lifted character, and the pieces, without white space before them."""
        return ((run.start(), run[0]) for run in self._runs.finditer(text))


_PLANES = tuple(Plane(start) for start in _STARTS)


def free_plane(texts: Iterable[str]) -> Plane:
    """A plane that no text uses.

    Raises
    ------
    UsageError
        all are in use
    """
    texts = list(texts)
    for plane in _PLANES:
        if not any(plane.holds(text) for text in texts):
            return plane
    raise UsageError("the messages have characters of both planes of Unicode for private use, U+F0000 and U+100000 on")
