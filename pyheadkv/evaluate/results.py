"""What was measured: one record for each case, policy and budget, and their means.

DIR/cells.jsonl has a line for each, written as soon as it is there:

    {"run": "5f0c...", "question": "in", "case": "single_2048_0_3", "policy": "snapkv", "budget": "10%",
     "task": "single", "kind": "alarm", "length": "2k", "depth": 0.41, "figures": {"score": 1.0, "digits": 1.0},
     "output": "...", "n_prompt": 2031, "keep_ratio": 0.1, "bytes_kept": 4680000, ...}

The first five say what was measured; the same is not measured twice. `run` stands for model, cache types, profile and
text, so one file may hold several of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.metrics import mean_and_error
from pyheadkv.jsonl import JsonLines, Record

KEY = ("run", "question", "case", "policy", "budget")
FULL = "full"  # policy and budget of the whole cache

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
        self._file = JsonLines(path, EvaluationError)
        lines = self._file.read()
        self.records = {key_of(line): line for line in lines if line and _is_whole(line)}
        if lines:
            self._file.write(self.records.values())

    def add(self, record: Record) -> None:
        """Keep a record."""
        self.records[key_of(record)] = record
        self._file.add(record)


def key_of(record: Record) -> Key:
    """What was measured."""
    return tuple(record[name] for name in KEY)


def _is_whole(record: Record) -> bool:
    return all(isinstance(record.get(name), str) for name in KEY) and isinstance(record.get("figures"), dict)


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
