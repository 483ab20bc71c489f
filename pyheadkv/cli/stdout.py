"""stdout as all commands write to it: never a traceback, whatever the terminal or the disk can take.

A character that the encoding lacks (ASCII, Latin-1, cp1252) becomes "?". A write that fails is an error of one line; a
pipe that the reader has closed is left to Typer, which ends quietly.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pyheadkv.errors import HeadKVError


class OutputError(HeadKVError):
    """stdout cannot be written."""


class Stdout(io.TextIOWrapper):
    """A text stream that says in one line why it cannot be written, and keeps that in mind."""

    failure: OutputError | None = None

    def write(self, text: str) -> int:
        """As of io.TextIOWrapper; an OutputError instead of an OSError."""
        with self._one_line():
            return super().write(text)

    def flush(self) -> None:
        """As of io.TextIOWrapper; an OutputError instead of an OSError."""
        with self._one_line():
            super().flush()

    @contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            self.failure = OutputError(f"stdout cannot be written: {error.strerror or error}")
            raise self.failure from None


@contextmanager
def guarded_stdout() -> Iterator[None]:
    """Have a `Stdout` as sys.stdout; what it could not write is one line on stderr and exit code 1."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="replace")
    plain = sys.stdout
    if not isinstance(plain, io.TextIOWrapper):  # none at all, as `>&-` leaves it
        yield
        return
    sys.stdout = out = Stdout(
        plain.buffer,
        plain.encoding,
        "replace",
        line_buffering=plain.line_buffering,
        write_through=plain.write_through,  # as PYTHONUNBUFFERED asks
    )
    try:
        try:
            yield
        finally:
            out.flush()
            if out.failure:  # a chat went on after it
                raise out.failure
    except (OutputError, BrokenPipeError) as error:
        if isinstance(error, OutputError):
            print(f"error: {error}", file=sys.stderr)
        _drop_unwritten(out.fileno())
        sys.exit(1)


def _drop_unwritten(fd: int) -> None:
    """Python tries to write what is left when it ends, and would end with a message of its own."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)
