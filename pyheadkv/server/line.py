"""Who is next: a bounded queue in which clients take turns, however many requests each of them has."""

from __future__ import annotations

from collections import OrderedDict, deque
from threading import Condition
from typing import Generic, TypeVar

from pyheadkv.errors import HeadKVError

T = TypeVar("T")


class FullError(HeadKVError):
    """So many wait already that no more are taken."""


class Line(Generic[T]):
    """Items of clients, for one thread that takes them.

    Parameters
    ----------
    n_max
        items that may wait
    """

    def __init__(self, n_max: int) -> None:
        self._n_max = n_max
        self._changed = Condition()
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()  # the client whose turn it is comes first
        self._is_closed = False

    def __len__(self) -> int:
        """How many wait."""
        with self._changed:
            return self._count()

    @property
    def is_full(self) -> bool:
        """Whether nobody else may wait."""
        return self._is_closed or len(self) >= self._n_max

    @property
    def is_closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._is_closed

    def put(self, client: str, item: T) -> None:
        """Wait for a turn, behind what the same client has here.

        Raises
        ------
        FullError
            too many wait, or nothing is taken any more
        """
        with self._changed:
            if self._is_closed:
                raise FullError("the server stops")
            if self._count() >= self._n_max:
                raise FullError(f"{self._n_max} requests wait for the model already")
            self._waiting.setdefault(client, deque()).append(item)
            self._changed.notify()

    def remove(self, client: str, item: T) -> bool:
        """Give up a place; false where it was taken already."""
        with self._changed:
            own = self._waiting.get(client, deque())
            if item not in own:
                return False
            own.remove(item)
            if not own:
                del self._waiting[client]
            return True

    def take(self) -> T | None:
        """The next item, as soon as there is one; None once the line is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._waiting)
            if self._is_closed:
                return None
            client, own = self._waiting.popitem(last=False)
            item = own.popleft()
            if own:
                self._waiting[client] = own  # behind all others
            return item

    def close(self) -> list[T]:
        """Take nothing any more; gives what waited."""
        with self._changed:
            self._is_closed = True
            left = [item for own in self._waiting.values() for item in own]
            self._waiting.clear()
            self._changed.notify_all()
            return left

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))
