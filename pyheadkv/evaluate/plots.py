"""Pictures of results: each figure over the budget, one line for a policy, and where needles were found by depth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pyheadkv.cache.stats import MIB
from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.compare import MAIN
from pyheadkv.evaluate.results import FULL, Cell, by_figure, label_of
from pyheadkv.files.jsonl import Record
from pyheadkv.plots.figure import new_figure, save_figure

N_DEPTHS = 5
_DASHES = ("-", "--", ":", "-.")
_MARKS = ("o", "s", "^", "D")


def write_curves(cells: Sequence[Cell], path: Path) -> None:
    """Score (or KL) over the share of rows kept, a panel for each task, length and question.

    Raises
    ------
    UsageError
        matplotlib is missing
    EvaluationError
        the file cannot be written
    """
    _write_panels(cells, path, "rows kept, %", lambda cell: 100 * cell.keep_ratio)


def write_bytes(cells: Sequence[Cell], path: Path) -> bool:
    """Score (or KL) over the measured bytes of the cache, whole caches as crosses.

    Returns False, and draws nothing, where there is one cache type only. Errors are those of `write_curves`.
    """
    if len({cell.cache for cell in cells}) < 2:
        return False
    _write_panels(cells, path, "K and V buffers, MiB", lambda cell: cell.bytes_measured / MIB)
    return True


def _write_panels(cells: Sequence[Cell], path: Path, axis: str, place: Callable[[Cell], float]) -> None:
    panels = by_figure(cells, MAIN)
    figure, places = new_figure(len(panels), 4.4, 3.6, n_columns=3, margin=1.8)
    lines: dict[str, Any] = {}
    styles = _styles(cells)
    for axes, ((question, task, length, name), group) in zip(places, panels.items(), strict=True):
        for label in dict.fromkeys(cell.label for cell in group):
            own = [cell for cell in group if cell.label == label]
            lines[label] = _line(axes, name, own, styles[label], place)
        _finish(axes, name, axis)
        asked = "" if name == "kl" else f", question {question}"
        axes.set_title(f"{task}, {length}{asked} ({max(cell.n for cell in group)} cases)", fontsize=9)
    figure.legend(list(lines.values()), list(lines), loc="outside right upper", fontsize=7)
    save_figure(figure, path, EvaluationError)


def _styles(cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """The same colour for a policy in all panels and cache types, the same dashes and marks for a cache type."""
    policies = list(dict.fromkeys(cell.policy for cell in cells if cell.policy != FULL))
    caches = list(dict.fromkeys(cell.cache for cell in cells))
    styles: dict[str, dict[str, Any]] = {}
    for cell in cells:
        i = caches.index(cell.cache)
        color = "black" if cell.policy == FULL else f"C{policies.index(cell.policy) % 10}"
        styles[cell.label] = {"color": color, "linestyle": _DASHES[i % len(_DASHES)], "marker": _MARKS[i % len(_MARKS)]}
    return styles


def _line(axes: Any, name: str, cells: Sequence[Cell], style: dict[str, Any], place: Callable[[Cell], float]) -> Any:
    factor = 1 if name == "kl" else 100
    own = sorted(cells, key=place)
    means, errors = ([factor * cell.figures[name][k] for cell in own] for k in (0, 1))
    bars = [0 if math.isnan(error) else error for error in errors]
    if own[0].policy == FULL:
        style = style | {"linestyle": "none", "markersize": 8, "fillstyle": "none"}
    return axes.errorbar(list(map(place, own)), means, bars, capsize=2, **style)


def _finish(axes: Any, name: str, axis: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.set_xlabel(axis)
    axes.set_ylabel("KL to the full cache, nats" if name == "kl" else f"{name}, %")
    if name != "kl":
        axes.set_ylim(-4, 104)
    axes.grid(alpha=0.3)


def write_depths(records: Sequence[Record], path: Path) -> bool:
    """Score by depth of the needle, a panel for each policy, a column for each length and budget.

    Only cases with a depth and one needle count ("single"). Returns False, and draws nothing, where there are none.
    Errors are those of `write_curves`.
    """
    has_caches = len({record["cache"] for record in records}) > 1
    panels: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["task"] == "single" and "depth" in record and "score" in record["figures"]:
            depth = min(N_DEPTHS - 1, int(record["depth"] * N_DEPTHS))
            column = record["length"] if record["budget"] == FULL else f"{record['length']}\n{record['budget']}"
            panels[label_of(record, has_caches)][(column, depth)].append(record["figures"]["score"])
    if not panels:
        return False
    figure, places = new_figure(len(panels), 3, 2.4)
    for axes, (label, found) in zip(places, panels.items(), strict=True):
        _depths(axes, found)
        axes.set_title(label[:48], fontsize=7)
    figure.suptitle("needles found, %, by depth; a column for each length and budget", fontsize=9)
    save_figure(figure, path, EvaluationError)
    return True


def _depths(axes: Any, found: dict[tuple[str, int], list[float]]) -> None:
    columns = list(dict.fromkeys(column for column, _ in found))
    values = [[fmean(found.get((column, depth), [math.nan])) for column in columns] for depth in range(N_DEPTHS)]
    axes.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, fontsize=6)
    axes.set_yticks(range(N_DEPTHS), [f"{100 * (k + 0.5) / N_DEPTHS:.0f} %" for k in range(N_DEPTHS)], fontsize=7)
    for depth, row in enumerate(values):
        for i, value in enumerate(row):
            if not math.isnan(value):
                axes.text(i, depth, f"{100 * value:.0f}", ha="center", va="center", fontsize=6)
