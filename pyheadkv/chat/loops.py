"""Tell that a model says the same few tokens over and over.

A loop is the same 1 to 64 tokens at least 8 times in a row, and at least 128 tokens of them. Text that repeats lines
with others between them, or with numbers that count, is none.
"""

from __future__ import annotations

import numpy as np

MAX_PERIOD = 64
MIN_TIMES, MIN_TOKENS = 8, 128

_PERIODS = np.arange(1, MAX_PERIOD + 1)
# so many tokens in a row equal the one a period before, once a loop is long enough: its first round has none before it
_LEAST = np.maximum(MIN_TIMES * _PERIODS, MIN_TOKENS) - _PERIODS


class LoopWatch:
    """Watches the tokens of one answer; each costs the comparison with the 64 before it.

    >>> watch = LoopWatch()
    >>> any(watch(token) for token in [7, 8] * 64)
    True
    """

    def __init__(self) -> None:
        self.is_loop = False
        self._last = np.full(MAX_PERIOD, -1, dtype=np.int64)  # the latest first
        self._alike = np.zeros(MAX_PERIOD, dtype=np.int64)  # for each period: tokens in a row equal to that before

    def __call__(self, token: int) -> bool:
        """Take the next token; True once the answer goes round in a loop."""
        self._alike = np.where(self._last == token, self._alike + 1, 0)
        self._last[1:] = self._last[:-1]
        self._last[0] = token
        self.is_loop = bool((self._alike >= _LEAST).any())
        return self.is_loop
