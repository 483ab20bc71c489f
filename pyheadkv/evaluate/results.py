"""Measurements: one record for each case, policy and budget, and their means.

DIR/cells.jsonl has a line for each, written as soon as it is there:

    {"run": "5f0c...", "question": "in", "case": "single_2048_0_3", "mark": "9a...", "policy": "snapkv",
     "budget": "10%", "cache": "f16", "task": "single", "kind": "alarm", "length": "2k", "depth": 0.41,
     "figures": {"score": 1.0, "digits": 1.0, "loglik": -0.02}, "output": "...", "n_prompt": 2031, "keep_ratio": 0.1,
     "bytes_kept": 4680000, "bytes_measured": 5836800, ...}

The first six say what was measured; the same is not measured twice. `run` stands for model, cache types, profile and
text, so one file may hold several of them; `mark` stands for the words of the case.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.metrics import mean_and_error
from pyheadkv.files.jsonl import JsonLines, Record

KEY = ("run", "question", "case", "mark", "policy", "budget")
CELL = ("question", "task", "length", "cache", "policy", "budget")  # what a mean is over
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
    """The measurements."""
    return tuple(record[name] for name in KEY)


def _is_whole(record: Record) -> bool:
    return all(isinstance(record.get(name), str) for name in KEY) and isinstance(record.get("figures"), dict)


@dataclass(frozen=True)
class Cell:
    """Cases of one task and length, under one policy, budget and cache type.

    Parameters
    ----------
    label
        the policy and, where there are several cache types, its own
    figures
        name -> (mean, standard error)
    n
        cases
    keep_ratio, bytes_kept, bytes_measured
        means over the cases
    """

    question: str
    task: str
    length: str
    cache: str
    policy: str
    budget: str
    label: str
    n: int
    figures: dict[str, tuple[float, float]]
    keep_ratio: float
    bytes_kept: float
    bytes_measured: float


def cells(records: Iterable[Record]) -> list[Cell]:
    """Means over the cases of each (question, task, length, cache, policy, budget), in the order of first records."""
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(record[name] for name in CELL)].append(record)
    has_caches = len({record["cache"] for group in groups.values() for record in group}) > 1
    return [_cell(group, has_caches) for group in groups.values()]


def by_figure(cells: Iterable[Cell], names: Sequence[str] = ()) -> dict[tuple[str, str, str, str], list[Cell]]:
    """(question, task, length, name of a figure) -> the cells that have it; of all figures, or of some."""
    groups: dict[tuple[str, str, str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        for name in names or cell.figures:
            if name in cell.figures:
                groups[cell.question, cell.task, cell.length, name].append(cell)
    return groups


def label_of(record: Record, has_caches: bool) -> str:
    """Policy and cache type; the latter only where there are several, and the policy's name does not begin with it."""
    policy, cache = record["policy"], record["cache"]
    return f"{policy}@{cache}" if has_caches and not policy.startswith(f"{cache}:") else str(policy)


def _cell(group: list[Record], has_caches: bool) -> Cell:
    names = [name for name in group[0]["figures"] if all(name in record["figures"] for record in group)]
    return Cell(
        **{name: group[0][name] for name in CELL},
        label=label_of(group[0], has_caches),
        n=len(group),
        figures={name: mean_and_error([record["figures"][name] for record in group]) for name in names},
        keep_ratio=_mean(group, "keep_ratio"),
        bytes_kept=_mean(group, "bytes_kept"),
        bytes_measured=_mean(group, "bytes_measured"),
    )


def _mean(group: list[Record], name: str) -> float:
    return mean_and_error([record[name] for record in group])[0]
