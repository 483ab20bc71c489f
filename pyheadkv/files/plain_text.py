"""The one definition of text, whoever hands it over: a file, standard input, or a word of the command line.

Text is UTF-8, with or without a mark at its beginning, or UTF-16 with one, as Windows shells write it. Line ends of
Windows become "\\n". All else is refused in one line: what cannot be opened, a byte that does not belong there or a NUL
byte, with its offset, nothing but blanks, and more than there is room for.

A FIFO or a pipe can be read only once, so each source is opened once: `TextSource` looks at its first block, before
anything costly is begun, and reads the rest when it is known how much is wanted.
"""

from __future__ import annotations

import codecs
import os
import stat
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pyheadkv.errors import HeadKVError, UsageError

STDIN = "standard input"
BYTES_PER_TOKEN = 256  # the longest tokens of known vocabularies are 128 blanks; most of them have below 8 bytes
_BLOCK = 1 << 16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
    (b"", "utf-8", "UTF-8"),
)


@dataclass(frozen=True)
class Limit:
    """Bytes that are read at most, and words that say why."""

    n_bytes: int = 1 << 28
    reason: str = ""

    @classmethod
    def of_context(cls, n_ctx: int) -> Limit:
        """No text with more bytes fits into a context of so many tokens."""
        return cls(n_ctx * BYTES_PER_TOKEN, f" ({BYTES_PER_TOKEN} for each of the {n_ctx} tokens of the context)")


class TextSource:
    """A text that is opened, and read once.

    Parameters
    ----------
    stream
        closed by `read`, unless it is standard input
    name
        for messages
    error
        what is raised

    Attributes
    ----------
    start
        text of the first block

    Raises
    ------
    HeadKVError
        `error`: the first block cannot be read, or is no text
    """

    def __init__(self, stream: BinaryIO, name: str, error: type[HeadKVError] = UsageError) -> None:
        self.name = name
        self._stream = stream
        self._error = error
        self._first = self._take(_BLOCK)
        self._is_whole = len(self._first) < _BLOCK
        self.start = decode_text(self._first, name, error, is_whole=self._is_whole)

    def read(self, limit: Limit | None = None, *, may_be_blank: bool = False) -> str:
        """All of the text.

        Raises
        ------
        HeadKVError
            `error`: it is longer than the limit, blank, cannot be read, or is no text
        """
        limit = limit or Limit()
        with nullcontext() if self.name == STDIN else self._stream:
            self._check_size(limit)
            rest = b"" if self._is_whole else self._take(limit.n_bytes + 1 - len(self._first))
        data = self._first + rest
        if len(data) > limit.n_bytes:
            raise self._too_long(f"more than {size_text(limit.n_bytes)}", limit)
        text = decode_text(data, self.name, self._error)
        if not (may_be_blank or text.strip()):
            raise self._error(f"{self.name} {'has nothing but blanks' if text else 'is empty'}")
        return text

    def takes_stdin(self) -> bool:
        """Whether this is standard input, or another name of a pipe that is (/dev/stdin): it can be read only once."""
        status = self._status()
        if self.name == STDIN:
            return True
        if status is None or sys.stdin is None or not stat.S_ISFIFO(status.st_mode):
            return False
        return os.path.samestat(status, os.fstat(sys.stdin.fileno()))

    def _status(self) -> os.stat_result | None:
        try:
            return os.fstat(self._stream.fileno())
        except OSError:  # no file of the system's
            return None

    def _check_size(self, limit: Limit) -> None:
        """A file's size is known before it is read."""
        status = self._status()
        if status is not None and stat.S_ISREG(status.st_mode) and status.st_size > limit.n_bytes:
            raise self._too_long(size_text(status.st_size), limit)

    def _too_long(self, size: str, limit: Limit) -> HeadKVError:
        return self._error(f"{self.name} has {size}, the limit is {size_text(limit.n_bytes)}{limit.reason}")

    def _take(self, n_bytes: int) -> bytes:
        try:
            return self._stream.read(max(n_bytes, 0)) or b""
        except OSError as problem:
            raise self._error(f"{self.name} cannot be read: {problem.strerror or problem}") from problem


def open_text(path: str | Path, error: type[HeadKVError] = UsageError, name: str = "") -> TextSource:
    """Open a file as text; "-" is standard input. `name` is what messages call the file, by default its path.

    Raises
    ------
    HeadKVError
        `error`: it cannot be opened, or its first block is no text
    """
    if str(path) == "-":
        return open_stdin(error)
    name = name or str(path)
    try:
        stream = Path(path).expanduser().open("rb")
    except OSError as problem:
        raise error(f"{name} cannot be read: {problem.strerror or problem}") from problem
    except (RuntimeError, ValueError) as problem:  # no such user's home; a NUL character in the path
        raise error(f"{name} cannot be read: {problem}") from problem
    return TextSource(stream, name, error)


def read_text(
    path: str | Path, error: type[HeadKVError] = UsageError, name: str = "", limit: Limit | None = None
) -> str:
    """Text of a file; as `open_text` and `TextSource.read`."""
    return open_text(path, error, name).read(limit)


def open_stdin(error: type[HeadKVError] = UsageError) -> TextSource:
    """Standard input as text.

    Raises
    ------
    HeadKVError
        `error`: there is none, somebody would have to type it, or its first block is no text
    """
    if sys.stdin is None:
        raise error(f"there is no {STDIN} to read from: name a file, or give the prompt with -p")
    if is_terminal():
        raise error(f"{STDIN} is a terminal: pipe the text in, name a file, or give the prompt with -p")
    return TextSource(sys.stdin.buffer, STDIN, error)


def is_terminal() -> bool:
    """Whether somebody can type into standard input, which a service does not even have."""
    return sys.stdin is not None and sys.stdin.isatty()


def typed_text(text: str, name: str) -> str:
    """A word of the command line, or a line that was typed; `name` is what messages call it.

    Raises
    ------
    UsageError
        it has bytes that are no text, which Python hands over as surrogates
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as problem:  # of a program's text
        raise UsageError(f"{name} is not text: it has half a character at position {problem.start}") from None
    return decode_text(data, name, UsageError)


def decode_text(data: bytes, name: str, error: type[HeadKVError] = UsageError, *, is_whole: bool = True) -> str:
    """Bytes as text; those of a first block (`is_whole` false) may end within a character.

    Raises
    ------
    HeadKVError
        `error`: they are no text; says where
    """
    mark, codec, words = next(known for known in _MARKS if data.startswith(known[0]))
    try:
        text = codecs.getincrementaldecoder(codec)().decode(data[len(mark) :], is_whole)
    except UnicodeDecodeError as problem:
        at = len(mark) + problem.start
        raise error(f"{name} is not {words} text: byte {data[at]:#04x} at offset {at}") from None
    nul = text.find("\0")
    if nul >= 0:
        at = len(mark) + len(text[:nul].encode(codec))
        raise error(f"{name} is not text: it has a NUL byte at offset {at}")
    return text.replace("\r\n", "\n")


def size_text(n_bytes: int) -> str:
    """Bytes in the unit that people read."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes} bytes"
