"""Pictures of results: each figure over the budget, one line for a policy, and where needles were found by depth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyheadkv.errors import EvaluationError, UsageError
from pyheadkv.evaluate.results import FULL, Cell
from pyheadkv.jsonl import Record

N_DEPTHS = 5
_MAIN = ("score", "kl")  # one picture a task is enough: digits and top1 are in the tables


def write_curves(cells: Sequence[Cell], path: Path) -> None:
    """Score (or KL) over the share of rows kept, a panel for each task, length and question.

    Raises
    ------
    UsageError
        matplotlib is missing
    EvaluationError
        the file cannot be written
    """
    panels: dict[tuple[str, str, str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        for name in _MAIN:
            if name in cell.figures:
                panels[(cell.task, cell.length, cell.question, name)].append(cell)
    n_columns = min(3, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    figure = _figure(4.2 * n_columns, 3.2 * n_rows)
    for i, ((task, length, question, name), group) in enumerate(panels.items()):
        axes = figure.add_subplot(n_rows, n_columns, i + 1)
        _curves(axes, name, group)
        asked = "" if name == "kl" else f", question {question}"
        axes.set_title(f"{task}, {length}{asked} ({max(cell.n for cell in group)} cases)", fontsize=9)
    _save(figure, path)


def _curves(axes: Any, name: str, cells: Sequence[Cell]) -> None:
    factor = 1 if name == "kl" else 100
    for policy in dict.fromkeys(cell.policy for cell in cells):
        own = sorted((cell for cell in cells if cell.policy == policy), key=lambda cell: cell.keep_ratio)
        means, errors = ([factor * cell.figures[name][k] for cell in own] for k in (0, 1))
        if policy == FULL:
            axes.axhline(means[0], color="grey", linestyle=":", label="full cache")
            continue
        ratios = [100 * cell.keep_ratio for cell in own]
        axes.errorbar(ratios, means, [0 if math.isnan(e) else e for e in errors], marker="o", capsize=2, label=policy)
    axes.set_xscale("log")
    axes.set_xlabel("rows kept, %")
    axes.set_ylabel("KL to the full cache, nats" if name == "kl" else f"{name}, %")
    axes.legend(fontsize=6)
    axes.grid(alpha=0.3)


def write_depths(records: Sequence[Record], path: Path) -> bool:
    """Score by depth of the needle and length, a panel for each policy and budget.

    Only cases with a depth and one needle count ("single"). Returns False, and draws nothing, where there are none.

    Raises
    ------
    UsageError
        matplotlib is missing
    EvaluationError
        the file cannot be written
    """
    panels: dict[tuple[str, str], dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["task"] == "single" and "depth" in record and "score" in record["figures"]:
            depth = min(N_DEPTHS - 1, int(record["depth"] * N_DEPTHS))
            panels[(record["policy"], record["budget"])][(record["length"], depth)].append(record["figures"]["score"])
    if not panels:
        return False
    n_columns = min(4, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    figure = _figure(2.6 * n_columns, 2.4 * n_rows)
    for i, ((policy, budget), found) in enumerate(panels.items()):
        axes = figure.add_subplot(n_rows, n_columns, i + 1)
        lengths = list(dict.fromkeys(length for length, _ in found))
        values = [[_mean(found.get((length, depth), [])) for length in lengths] for depth in range(N_DEPTHS)]
        axes.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axes.set_xticks(range(len(lengths)), lengths, fontsize=7)
        axes.set_yticks(range(N_DEPTHS), [f"{100 * (k + 0.5) / N_DEPTHS:.0f} %" for k in range(N_DEPTHS)], fontsize=7)
        axes.set_title(policy if policy == FULL else f"{policy[:32]}, {budget}", fontsize=7)
    figure.suptitle("needles found, by depth and length", fontsize=9)
    _save(figure, path)
    return True


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("drawing needs matplotlib, which is missing: pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written: {error.strerror or error}") from None
