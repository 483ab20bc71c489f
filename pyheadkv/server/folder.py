"""A folder of conversations: capsules that this server wrote, and those that somebody put there.

    chat-<32 hex digits>.hkv    of this server: written after each answer, deleted when the folder is full
    any other .hkv              of `pyheadkv ingest` or /save: opened, and never written or deleted

When a file was used last is its time of modification, so that a restart knows it too.
"""

from __future__ import annotations

import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyheadkv.capsule.reader import Contents, read_contents
from pyheadkv.errors import HeadKVError, UsageError
from pyheadkv.files.beside import remove_old_parts

SUFFIX = ".hkv"
_OWN = re.compile(r"chat-[0-9a-f]{32}\.hkv")
_PART = re.compile(r"\.(chat-[0-9a-f]{32}\.hkv)\.[a-z0-9_]{8}\.part")  # as `beside.make_part` names it
Tokens = npt.NDArray[np.int32]


@dataclass
class Kept:
    """A conversation on disk; its tokens are in memory, its rows are not.

    Parameters
    ----------
    tokens
        that have rows, int32 [n]
    n_bytes
        of the file
    used
        when it was used last, ns
    is_ours
        this server wrote it
    """

    path: Path
    tokens: Tokens
    n_bytes: int
    used: int
    is_ours: bool

    def spoil(self) -> None:
        """It cannot be read: nothing begins like it any more, and it goes when room is needed."""
        self.tokens, self.used = self.tokens[:0], 0


class Folder:
    """The conversations of a folder.

    Parameters
    ----------
    path
        made where there is none
    n_bytes_max
        of all files that this server writes there
    """

    def __init__(self, path: Path, n_bytes_max: int) -> None:
        self.path, self.n_bytes_max = path, n_bytes_max
        self._kept: dict[Path, Kept] = {}

    @property
    def n_kept(self) -> int:
        """How many there are."""
        return len(self._kept)

    @property
    def n_bytes(self) -> int:
        """Of the files that this server wrote."""
        return sum(kept.n_bytes for kept in self._kept.values() if kept.is_ours)

    def others(self) -> list[Path]:
        """Files that somebody put there, and that fit."""
        return sorted(kept.path for kept in self._kept.values() if not kept.is_ours)

    @contextmanager
    def used_alone(self) -> Iterator[None]:
        """No other server writes there within the block.

        Raises
        ------
        UsageError
            one does, or the folder cannot be had
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise UsageError(f"--memory {self.path} cannot be used: {error.strerror or error}") from None
        with os.fdopen(handle):
            if sys.platform != "win32":
                import fcntl

                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise UsageError(f"--memory {self.path} is used by another server") from None
            yield

    def scan(self, check: Callable[[Contents], None]) -> list[str]:
        """Find what is there; files that were begun by a server that was killed are removed.

        Parameters
        ----------
        check
            raises a HeadKVError for what does not fit the model

        Returns
        -------
        a line for each file that cannot be used
        """
        refused = []
        for path in sorted(self.path.iterdir()):
            if part := _PART.fullmatch(path.name):
                remove_old_parts(self.path / part[1])
            elif path.suffix == SUFFIX and path.is_file():
                try:
                    contents = read_contents(path)
                    check(contents)
                    self.add(contents)
                except (HeadKVError, OSError) as error:
                    refused.append(str(error))
        return refused

    def add(self, contents: Contents) -> Kept:
        """One that was found, or written just now."""
        path, status = contents.path, contents.path.stat()
        tokens = contents.tokens[: contents.n_rows].copy()
        kept = Kept(path, tokens, status.st_size, status.st_mtime_ns, bool(_OWN.fullmatch(path.name)))
        self._kept[path] = kept
        return kept

    def longest(self, tokens: Tokens) -> tuple[Kept | None, int]:
        """The conversation that begins most like some tokens, and how many are the same.

        Of equals, one that is all of their beginning goes first.
        """
        if not self._kept:
            return None, 0
        counted = [(n_equal(kept.tokens, tokens), kept) for kept in self._kept.values()]
        n, kept = max(counted, key=lambda it: (it[0], it[0] == len(it[1].tokens), it[1].used))
        return kept, n

    def touch(self, kept: Kept) -> None:
        """It is used now."""
        kept.used = time.time_ns()  # the system's own time of a file is some ms old
        with suppress(OSError):
            os.utime(kept.path, ns=(kept.used, kept.used))

    def new_path(self) -> Path:
        """For one more."""
        return self.path / f"chat-{uuid.uuid4().hex}{SUFFIX}"

    def make_room(self, n_bytes: int, spared: Kept | None) -> bool:
        """Delete what was not used for longest until so many bytes more may be written; whether they may."""
        ours = sorted((it for it in self._kept.values() if it.is_ours and it is not spared), key=lambda it: it.used)
        if n_bytes + (spared.n_bytes if spared and spared.is_ours else 0) > self.n_bytes_max:
            return False
        while ours and self.n_bytes + n_bytes > self.n_bytes_max:
            self.delete(ours.pop(0))
        return True

    def delete(self, kept: Kept) -> None:
        """Forget one that this server wrote, and its file."""
        del self._kept[kept.path]
        with suppress(OSError):
            kept.path.unlink()


def n_equal(a: Tokens, b: Tokens) -> int:
    """Tokens at the beginning that both have."""
    n = min(len(a), len(b))
    other = np.flatnonzero(a[:n] != b[:n])
    return int(other[0]) if len(other) else n
