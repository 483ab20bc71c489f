"""A limit of the memory that the whole process has.

    weights, cache, buffers of an answer: what `--fit` promises      | requests: all their bodies | look
    limit - limit / 8 ............................................... | limit / 8 .................. |

Settings are chosen so that the first part fits, bodies beyond the second are refused, and a model that takes more than
was promised is stopped: the process's memory is looked at while it computes. The cache is emptied then, and the request
ends in one line; a conversation that is kept in a folder is begun with again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pyheadkv.engine.resident import resident
from pyheadkv.errors import UsageError
from pyheadkv.server.errors import UNAVAILABLE, ApiError

RETRY = {"Retry-After": "1"}
_SHARE, _SHARE_MAX = 8, 1 << 28  # of the limit, for requests
# bytes in memory for each of a body, at the most: letters without a word among them become a token for every other one,
# and a token is a Python number twice; JSON that is nested takes 60
_BYTES_PER_BODY = 150
_LOOK_SECONDS = 0.01  # a look takes some 30 us
_MARGIN = 32  # of the limit, for what comes between two looks


class MemoryLimit:
    """So many bytes, of which requests have a share.

    Parameters
    ----------
    n_bytes
        of the whole process
    words
        the user's, for messages

    Attributes
    ----------
    bytes_model
        what weights, cache and buffers may have
    max_bodies
        bytes of all bodies that are here at a time

    Raises
    ------
    UsageError
        this system does not say how much memory a process has
    """

    def __init__(self, n_bytes: int, words: str) -> None:
        if resident() is None:
            raise UsageError("--limit-memory needs /proc, which says how much memory a process has (--fit needs none)")
        share = min(n_bytes // _SHARE, _SHARE_MAX)
        self.bytes_model, self.max_bodies = n_bytes - share, share // _BYTES_PER_BODY
        self._most, self._words = n_bytes - n_bytes // _MARGIN, words
        self._seen, self._next_look = 0, 0.0

    @property
    def was_reached(self) -> bool:
        """Whether it was seen that the process had so much."""
        return self._seen > self._most

    def ending(self, is_cancelled: Callable[[], bool]) -> Callable[[], bool]:
        """Whether an answer that begins now has to end; asked as often as one likes, from one thread."""
        self._seen, self._next_look = 0, 0.0

        def must_end() -> bool:
            now = time.monotonic()
            if not self.was_reached and now >= self._next_look:
                self._next_look = now + _LOOK_SECONDS
                self._seen = resident() or 0
            return self.was_reached or is_cancelled()

        return must_end

    def error(self) -> ApiError:
        """What a request ends with that was stopped."""
        return ApiError(
            f"the process has {_mib(self._seen)} of memory, more than the {_mib(self._most)} that --limit-memory "
            f"{self._words} allows an answer: the cache was emptied",
            UNAVAILABLE,
            code="memory_limit_reached",
            headers=RETRY,
        )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.0f} MiB"
