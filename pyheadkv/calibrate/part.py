"""Records are kept at once, one line each, so that a calibration that was stopped can go on.

    {"headkv_part": 1, "fingerprint": "...", "seed": 0, "lengths": [512, 1024, 2048], ...}
    {"id": "question 0.3", "kind": "codes", "group": 0, "is_right": true, "copy": [...], "reasoning": [...]}
    {"id": "excerpt 0", "kind": "reconstruction", "group": 0, "reconstruction": [...]}

The first line names what the scores depend on; a file with another first line is not gone on with. Scores are of query
heads (copy, reasoning) or of KV heads (reconstruction), layer-major, with 6 digits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyheadkv.errors import CalibrationError
from pyheadkv.files.jsonl import JsonLines, Record

VERSION = 1


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
        self.records: dict[str, Record] = {}
        self._file = JsonLines(path, CalibrationError)
        self._header: dict[str, Any] = json.loads(json.dumps({"headkv_part": VERSION, **header}))
        lines = self._file.read()
        difference = self._difference(lines[0] or {}) if lines else ""
        if difference and not force:
            raise CalibrationError(f"{path} is of another calibration ({difference}): --force begins anew")
        if not difference:
            self.records = {line["id"]: line for line in lines[1:] if line and isinstance(line.get("id"), str)}
        self._file.write([self._header, *self.records.values()])

    def add(self, record: Record) -> None:
        """Keep a record."""
        self.records[record["id"]] = record
        self._file.add(record)

    def _difference(self, found: Record) -> str:
        """The first thing in which a file's first line differs, in words; "" if it is the same."""
        others = ((key, found.get(key), value) for key, value in self._header.items() if found.get(key) != value)
        return next((f"its {key} is {other!r}, not {value!r}" for key, other, value in others), "")
