"""What was measured: one record for each case, policy and budget, and their means.

DIR/cells.jsonl has a line for each, written as soon as it is there:

    {"run": "5f0c...", "question": "in", "case": "single_2048_0_3", "policy": "snapkv", "budget": "10%",
     "task": "single", "kind": "alarm", "length": "2k", "depth": 0.41, "figures": {"score": 1.0, "digits": 1.0},
     "output": "...", "n_prompt": 2031, "keep_ratio": 0.1, "bytes_kept": 4680000, ...}

The first five say what was measured; the same is not measured twice. `run` stands for model, cache types, profile and
text, so one file may hold several of them.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.metrics import mean_and_error

KEY = ("run", "question", "case", "policy", "budget")
FULL = "full"  # policy and budget of the whole cache

Record = dict[str, Any]
Key = tuple[str, ...]


class Results:
    """Records in memory and, where a path is given, in a file that is gone on with.

    Raises
    ------
    EvaluationError
        the file cannot be read or written
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.records: dict[Key, Record] = {}
        if path is None:
            return
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        except OSError as error:
            raise EvaluationError(f"{path} cannot be read: {error.strerror}") from None
        self.records = {key_of(record): record for record in map(_record, lines) if record}
        if lines:  # written anew: a line that was cut off halfway would spoil the next one
            self._write("w", self.records.values())

    def add(self, record: Record) -> None:
        """Keep a record."""
        self.records[key_of(record)] = record
        self._write("a", [record])

    def _write(self, mode: str, records: Iterable[Record]) -> None:
        if self.path is None:
            return
        try:
            with self.path.open(mode, encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EvaluationError(f"{self.path} cannot be written: {error.strerror}") from None


def key_of(record: Record) -> Key:
    """What was measured."""
    return tuple(record[name] for name in KEY)


def _record(line: str) -> Record | None:
    """One line; None if it is not whole."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_whole = isinstance(record, dict) and all(isinstance(record.get(name), str) for name in KEY)
    return record if is_whole and isinstance(record.get("figures"), dict) else None


@dataclass(frozen=True)
class Cell:
    """Cases of one task and length, under one policy and budget.

    Parameters
    ----------
    figures
        name -> (mean, standard error)
    n
        cases
    keep_ratio, bytes_kept
        means over the cases
    """

    question: str
    task: str
    length: str
    policy: str
    budget: str
    n: int
    figures: dict[str, tuple[float, float]]
    keep_ratio: float
    bytes_kept: float


def cells(records: Iterable[Record]) -> list[Cell]:
    """Means over the cases of each (question, task, length, policy, budget), in the order of their first records."""
    groups: dict[tuple[str, str, str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        key = (record["question"], record["task"], record["length"], record["policy"], record["budget"])
        groups[key].append(record)
    return [_cell(*key, group) for key, group in groups.items()]


def _cell(question: str, task: str, length: str, policy: str, budget: str, group: list[Record]) -> Cell:
    names = [name for name in group[0]["figures"] if all(name in record["figures"] for record in group)]
    return Cell(
        question,
        task,
        length,
        policy,
        budget,
        len(group),
        {name: mean_and_error([record["figures"][name] for record in group]) for name in names},
        mean_and_error([record["keep_ratio"] for record in group])[0],
        mean_and_error([record["bytes_kept"] for record in group])[0],
    )
