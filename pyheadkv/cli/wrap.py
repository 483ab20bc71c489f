"""Answers wrapped at words while they stream.

The word that is being said is held back until a blank ends it; where it does not fit on the line, a newline goes before
it. A terminal alone would break the word in the middle. A newline only ever stands behind a blank, which stays, so that
words are apart where lines are joined again after copying. What has no blanks is left to the terminal, which copies it
whole: a word longer than a line (an address), text in wide characters (Chinese, Japanese).

Lines between code fences (```) and rows of tables (|) are passed on as they are.
"""

from __future__ import annotations

import shutil
import sys

from prompt_toolkit.utils import get_cwidth

_TAB = 8
_FENCE, _TABLE = "```", "|"


class WordWrap:
    """Wraps one answer.

    Parameters
    ----------
    columns
        of the terminal; 0 wraps nothing
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._limit = columns - 1  # words end here, with room for a blank
        self._column = 0
        self._word = ""  # held back
        self._is_first = True  # word of the line
        self._is_flowing = False  # what comes is shown at once, until a blank
        self._is_fenced = False
        self._is_verbatim = False  # the line

    def feed(self, piece: str) -> str:
        """Text that can be shown when this has been said too."""
        return "".join(map(self._next, piece)) if self._columns else piece

    def flush(self) -> str:
        """The word that is held back: nothing more will be said."""
        return self._end_word()

    def _next(self, char: str) -> str:
        if char == "\n":
            return self._end_line()
        if char in " \t":
            return self._end_word() + self._blank(char)
        if self._is_flowing:
            return self._put(char)
        if get_cwidth(char) > 1:
            shown = self._end_word() + self._put(char)
            self._is_first, self._is_flowing = False, True
            return shown
        self._word += char
        if get_cwidth(self._word) <= self._limit:
            return ""
        shown = self._end_word()
        self._is_flowing = True
        return shown

    def _end_line(self) -> str:
        shown = self._end_word() + "\n"
        self._column, self._is_first = 0, True
        self._is_verbatim, self._is_flowing = self._is_fenced, False
        return shown

    def _end_word(self) -> str:
        word, self._word = self._word, ""
        if not word:
            return ""
        if self._is_first:
            self._is_first = False
            self._look_at_first(word)
        elif self._column + get_cwidth(word) > self._limit:
            self._column = 0
            return "\n" + self._put(word)
        return self._put(word)

    def _look_at_first(self, word: str) -> None:
        if word.startswith(_FENCE):
            self._is_fenced = not self._is_fenced
            self._is_verbatim = True
        elif word.startswith(_TABLE):
            self._is_verbatim = True
        self._is_flowing = self._is_verbatim

    def _blank(self, char: str) -> str:
        self._is_flowing = self._is_verbatim and not self._is_first
        if self._column > self._limit and not self._is_verbatim:
            return ""  # a second blank behind a full line
        return self._put(char)

    def _put(self, text: str) -> str:
        """Count columns as the terminal does, which goes on with the next line behind the last one."""
        for char in text:
            width = _TAB - self._column % _TAB if char == "\t" else get_cwidth(char)
            fits = self._column + width <= self._columns
            self._column = self._column + width if fits else width
        return text


def wrap_for_stdout() -> WordWrap:
    """For the width of the terminal, where stdout is one; a pipe or a file gets lines as they were said."""
    return WordWrap(shutil.get_terminal_size().columns if sys.stdout.isatty() else 0)
