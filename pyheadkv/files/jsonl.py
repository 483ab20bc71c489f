"""JSON lines that are written as soon as they are known, so that what was stopped can be gone on with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyheadkv.errors import HeadKVError
from pyheadkv.files.targets import check_target, writing

Record = dict[str, Any]


class JsonLines:
    """A file with one JSON object a line.

    Parameters
    ----------
    path
        None keeps nothing
    error
        raised when the file cannot be read or written, with the system's reason
    """

    def __init__(self, path: Path | None, error: type[HeadKVError]) -> None:
        self.path = path
        self._error = error

    def read(self) -> list[Record | None]:
        """All lines, None for one that is no object: it was cut off halfway. None are there without a file."""
        if self.path is None:
            return []
        check_target(self.path, self._error)  # a FIFO would be waited for
        try:
            # the file is ASCII, so that no character within a text ends a line
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._error(f"{self.path} cannot be read: {error.strerror}") from None
        return [_record(line) for line in lines]

    def write(self, records: Iterable[Record]) -> None:
        """Have exactly these: a line that was cut off halfway would spoil the next one."""
        self._write("w", records)

    def add(self, record: Record) -> None:
        """One more; it is on the disk when this returns."""
        self._write("a", [record])

    def _write(self, mode: str, records: Iterable[Record]) -> None:
        if self.path is None:
            return
        with writing(self.path, self._error), self.path.open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())


def _record(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
