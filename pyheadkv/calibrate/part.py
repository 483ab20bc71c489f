"""What is measured is kept at once, one line each, so that a calibration that was stopped can go on.

    {"headkv_part": 1, "fingerprint": "...", "seed": 0, "lengths": [512, 1024, 2048], ...}
    {"id": "question 0.3", "kind": "codes", "group": 0, "is_right": true, "copy": [...], "reasoning": [...]}
    {"id": "excerpt 0", "kind": "reconstruction", "group": 0, "reconstruction": [...]}

The first line names what the scores depend on; a file with another first line is not gone on with. Scores are of query
heads (copy, reasoning) or of KV heads (reconstruction), layer-major, with 6 digits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyheadkv.errors import CalibrationError

VERSION = 1
Record = dict[str, Any]


class Part:
    """Records of a calibration, in memory and, where a path is given, in a file.

    Parameters
    ----------
    path
        None keeps nothing
    header
        what the records depend on: model and settings
    force
        begin anew where the file is of another calibration

    Raises
    ------
    CalibrationError
        the file is of another calibration (names the first difference), or cannot be written
    """

    def __init__(self, path: Path | None, header: Mapping[str, object], force: bool = False) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        self._header: dict[str, Any] = json.loads(json.dumps({"headkv_part": VERSION, **header}))
        if path is None:
            return
        lines = _read_lines(path)
        difference = self._difference(lines[0]) if lines else ""
        if difference and not force:
            raise CalibrationError(f"{path} is of another calibration ({difference}): --force begins anew")
        if not difference:
            self.records = {record["id"]: record for record in map(_record, lines[1:]) if record}
        # written anew: a line that was cut off halfway would spoil the next one
        self._write("w", [self._header, *self.records.values()])

    def add(self, record: Record) -> None:
        """Keep a record."""
        self.records[record["id"]] = record
        self._write("a", [record])

    def _write(self, mode: str, records: list[Record]) -> None:
        if self.path is None:
            return
        try:
            with self.path.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CalibrationError(f"{self.path} cannot be written: {error.strerror}") from error

    def _difference(self, line: str) -> str:
        """The first thing in which a file's first line differs, in words; "" if it is the same."""
        found = _record(line, needs_id=False) or {}
        for key, value in self._header.items():
            if found.get(key) != value:
                return f"its {key} is {found.get(key)!r}, not {value!r}"
        return ""


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}") from error


def _record(line: str, needs_id: bool = True) -> Record | None:
    """One line; None if it is not whole."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_record = isinstance(record, dict) and (not needs_id or isinstance(record.get("id"), str))
    return record if is_record else None
