"""Reading a capsule: its last finished turn, whatever was written behind it, and the rows of that turn."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pyheadkv.capsule.format import (
    CHECKSUM,
    COMMIT,
    HEADER,
    OVERHEAD,
    PREAMBLE,
    RECORD,
    ROWS,
    SEGMENT,
    SPAN,
    TOKENS,
    Commit,
    DamagedError,
    Header,
    Message,
    check_preamble,
    checksum_of,
)
from pyheadkv.errors import CapsuleError

FileId = tuple[int, int]  # device and number
BLOCK_BYTES = 4 << 20  # of rows that are read, or written, at once
_SEARCH_BYTES = 1 << 20
_PER_END, _MAX_ENDS = 4096, 1024  # what looks like the end of a turn: bytes that each counts for, at least so many


@dataclass(frozen=True)
class Contents:
    """What a capsule holds, rows aside.

    Parameters
    ----------
    tokens
        of the conversation, int32; the first `n_rows` have rows, the others are read again
    n_turns
        times that it was saved
    end
        bytes up to the end of the last finished turn
    n_dropped
        bytes behind it, of a turn whose writing was broken off
    """

    path: Path
    header: Header
    tokens: npt.NDArray[np.int32]
    n_rows: int
    messages: list[Message]
    attachments: list[str]
    date: str
    n_turns: int
    end: int
    n_dropped: int


@dataclass(frozen=True)
class _Segment:
    """Positions [first, end), and where in the file the rows of K and V of each layer begin."""

    first: int
    end: int
    places: list[int]


@dataclass
class _Turns:
    """What the turns up to a place in the file say together: each cuts those before, and goes on."""

    n_turns: int = 0
    end: int = 0
    n_rows: int = 0
    n_tokens: int = 0
    date: str = ""
    messages: list[Message] = field(default_factory=list)
    attachments: list[str] = field(default_factory=list)
    segments: list[tuple[int, _Segment]] = field(default_factory=list)  # up to which position each holds
    tokens: list[tuple[int, npt.NDArray[np.int32]]] = field(default_factory=list)  # first position

    def add(self, segment: _Segment, tokens: npt.NDArray[np.int32], commit: Commit) -> None:
        """One more; DamagedError, and nothing is changed, where it does not fit those before."""
        first, n_tokens = segment.first, segment.first + len(tokens)
        if first > self.n_rows or segment.end > n_tokens or commit.n_messages_kept > len(self.messages):
            raise DamagedError("a turn does not fit those before it")
        if (commit.n_rows, commit.n_tokens) != (segment.end, n_tokens):
            raise DamagedError("a turn is not as long as it says")
        while self.segments and self.segments[-1][1].first >= first:
            self.segments.pop()
        if self.segments:
            end, last = self.segments.pop()
            self.segments.append((min(end, first), last))
        if segment.end > first:
            self.segments.append((segment.end, segment))
        while self.tokens and self.tokens[-1][0] >= first:
            self.tokens.pop()
        self.tokens.append((first, tokens))
        del self.messages[commit.n_messages_kept :]
        self.messages += commit.messages
        self.attachments, self.date = list(commit.attachments), commit.date
        self.n_rows, self.n_tokens = segment.end, n_tokens
        self.n_turns += 1

    def all_tokens(self) -> npt.NDArray[np.int32]:
        """Of all positions."""
        ends = [*(first for first, _ in self.tokens[1:]), self.n_tokens]
        parts = [part[: end - first] for (first, part), end in zip(self.tokens, ends, strict=True)]
        return np.concatenate([np.empty(0, dtype=np.int32), *parts])


class CapsuleFile:
    """An open capsule, read up to its last finished turn.

    Parameters
    ----------
    file
        open for reading, without a buffer
    path
        for messages

    Raises
    ------
    CapsuleError
        it is no capsule, of another version or byte order, holds no finished turn, or is damaged
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path = path
        self._file = file
        try:
            self._size = os.fstat(file.fileno()).st_size
            check_preamble(self._read(0, min(PREAMBLE.size, self._size)))
            self.header, at = self._header()
            self._turns = self._scan(at)
        except DamagedError as error:
            raise CapsuleError(f"{path} is damaged: {error}") from None
        except CapsuleError as error:
            raise CapsuleError(f"{path} {error}") from None
        except OSError as error:
            raise _cannot_be_read(path, error) from error

    @property
    def file_id(self) -> FileId:
        """Which file it is."""
        status = os.fstat(self._file.fileno())
        return status.st_dev, status.st_ino

    @property
    def contents(self) -> Contents:
        """All but the rows."""
        turns = self._turns
        return Contents(
            path=self.path,
            header=self.header,
            tokens=turns.all_tokens(),
            n_rows=turns.n_rows,
            messages=turns.messages,
            attachments=turns.attachments,
            date=turns.date,
            n_turns=turns.n_turns,
            end=turns.end,
            n_dropped=self._size - turns.end,
        )

    def verify(self) -> None:
        """Compare all rows with their checksums.

        Raises
        ------
        CapsuleError
            naming the first that differ
        """
        for _, segment in self._turns.segments:
            for j, place in enumerate(segment.places):
                try:
                    self._check(place - RECORD.size, f"{_part_name(j)}, from position {segment.first} on")
                except DamagedError as error:
                    raise CapsuleError(f"{self.path} is damaged: {error}") from None
                except OSError as error:
                    raise _cannot_be_read(self.path, error) from error

    def rows(self, i: int, is_k: bool) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Rows of layer i, K or V of all heads, in blocks: their first position, and uint8 [n, size].

        Raises
        ------
        CapsuleError
            the file was cut off while it was read
        """
        size = self.header.cell_bytes[i][not is_k]
        n_block = max(1, BLOCK_BYTES // size)
        for held, segment in self._turns.segments:
            place = segment.places[2 * i + (not is_k)]
            for first in range(segment.first, held, n_block):
                n = min(n_block, held - first)
                try:
                    data = self._read(place + (first - segment.first) * size, n * size)
                except DamagedError as error:
                    raise CapsuleError(f"{self.path} is damaged: {error}") from None
                except OSError as error:
                    raise _cannot_be_read(self.path, error) from error
                yield first, np.frombuffer(data, dtype=np.uint8).reshape(n, size)

    # ---- records ----

    def _header(self) -> tuple[Header, int]:
        kind, n_bytes = self._record(PREAMBLE.size)
        if kind != HEADER:
            raise DamagedError("it does not begin with its header")
        return Header.unpack(self._held(PREAMBLE.size)), PREAMBLE.size + OVERHEAD + n_bytes

    def _scan(self, start: int) -> _Turns:
        """All turns; what is behind the last one must be the beginning of one, and nothing else."""
        turns = _Turns()
        at = turns.end = start
        while at < self._size:
            try:
                at = self._turn(at, turns)
            except DamagedError as error:
                if self._has_commit(at):
                    raise
                if turns.n_turns == 0:
                    raise DamagedError(f"{error}, and no turn was finished before") from None
                break
        if turns.n_turns == 0:
            raise DamagedError("no turn was finished")
        return turns

    def _turn(self, at: int, turns: _Turns) -> int:
        """Add the turn that begins there; where the next one does."""
        at, span = self._next(at, SEGMENT)
        if len(span) != SPAN.size:
            raise DamagedError("a segment is not what it should be")
        first, n = SPAN.unpack(span)
        at, data = self._next(at, TOKENS)
        if len(data) % 4:
            raise DamagedError("tokens end within one")
        places = []
        for size in (size for pair in self.header.cell_bytes for size in pair) if n else ():
            kind, n_bytes = self._record(at)
            if kind != ROWS or n_bytes != n * size:
                raise DamagedError(f"{n_bytes} bytes at {at}, expected rows of {n} positions, {n * size} bytes")
            places.append(at + RECORD.size)
            at += OVERHEAD + n_bytes
        at, commit = self._next(at, COMMIT)
        turns.add(_Segment(first, first + n, places), np.frombuffer(data, dtype="<i4"), Commit.unpack(commit))
        turns.end = at
        return at

    def _next(self, at: int, expected: bytes) -> tuple[int, bytes]:
        """What the record there holds, and where the next one begins."""
        kind, n_bytes = self._record(at)
        if kind != expected:
            raise DamagedError(f"{kind!r} at {at}, expected {expected!r}")
        return at + OVERHEAD + n_bytes, self._held(at)

    def _record(self, at: int) -> tuple[bytes, int]:
        """Kind and length of a record that the file has room for."""
        if self._size - at < OVERHEAD:
            raise DamagedError(f"it ends within a record at {at}")
        kind, n_bytes = RECORD.unpack(self._read(at, RECORD.size))
        if n_bytes > self._size - at - OVERHEAD:
            raise DamagedError(f"a record at {at} ends behind the end of the file")
        return kind, n_bytes

    def _held(self, at: int) -> bytes:
        """What a record holds that is right; all of it is read at once."""
        _, n_bytes = self._record(at)
        data = self._read(at, OVERHEAD + n_bytes)
        if CHECKSUM.pack(checksum_of(at, data[: -CHECKSUM.size])) != data[-CHECKSUM.size :]:
            raise DamagedError(f"the checksum of a record at {at} differs")
        return data[RECORD.size : -CHECKSUM.size]

    def _check(self, at: int, what: str) -> None:
        """Compare a record of any size with its checksum, block by block."""
        _, n_bytes = self._record(at)
        end, checksum = at + RECORD.size + n_bytes, checksum_of(at)
        for start in range(at, end, BLOCK_BYTES):
            checksum = zlib.crc32(self._read(start, min(BLOCK_BYTES, end - start)), checksum)
        if CHECKSUM.pack(checksum) != self._read(end, CHECKSUM.size):
            raise DamagedError(f"the checksum of {what} differs")

    def _has_commit(self, start: int) -> bool:
        """Whether a turn was finished behind a place, so that what is wrong there was no writing that broke off.

        Something that only looks like its end is met by chance, once in many gigabytes; a file made of such things is
        not read for ever.
        """
        n_left = self._size + _PER_END * _MAX_ENDS
        for at in range(start, self._size, _SEARCH_BYTES):
            data = self._read(at, min(_SEARCH_BYTES + len(COMMIT) - 1, self._size - at))
            found = data.find(COMMIT)
            while found >= 0:
                n_left -= _PER_END + self._length(at + found)
                if n_left < 0 or self._is_right(at + found):
                    return True
                found = data.find(COMMIT, found + 1)
        return False

    def _length(self, at: int) -> int:
        """Bytes of what a record holds, 0 where the file has no room for it."""
        try:
            return self._record(at)[1]
        except DamagedError:
            return 0

    def _is_right(self, at: int) -> bool:
        try:
            self._held(at)
        except DamagedError:
            return False
        return True

    def _read(self, at: int, n_bytes: int) -> bytes:
        self._file.seek(at)
        data = self._file.read(n_bytes)
        if len(data) != n_bytes:
            raise DamagedError("it was cut off while it was read")
        return data


@contextmanager
def open_capsule(path: str | Path) -> Iterator[CapsuleFile]:
    """Open a capsule for reading.

    Raises
    ------
    CapsuleError
        it cannot be read, or as of `CapsuleFile`
    """
    path = Path(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # nobody waits for a FIFO's writer
    try:
        handle = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise _cannot_be_read(path, error) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CapsuleError(f"{path} is no regular file")
    with os.fdopen(handle, "rb", buffering=0) as file:
        yield CapsuleFile(file, path)


def read_contents(path: str | Path) -> Contents:
    """What a capsule holds, rows aside; as `open_capsule`."""
    with open_capsule(path) as capsule:
        return capsule.contents


def _cannot_be_read(path: Path, error: Exception) -> CapsuleError:
    return CapsuleError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")


def _part_name(j: int) -> str:
    return f"{'KV'[j % 2]} of layer {j // 2}"
