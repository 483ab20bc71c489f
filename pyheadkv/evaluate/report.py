"""Results as a table for a terminal and as Markdown.

A cell is the mean with its standard error: 87.5 ±4.1 is 87.5 % of the points (score) over the cases of the cell.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from pyheadkv.evaluate.results import FULL, Cell

NOTE = (
    "Means over the cases of a cell ± one standard error; a difference within the errors is no gain. "
    "score, digits and top1 in %, kl in nats. full is the whole cache."
)
_NAMES = {"kl": "KL to the full cache", "top1": "top-1 agreement"}


@dataclass(frozen=True)
class Sheet:
    """One figure of one task and length: a row for each policy, a column for each budget."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sheets(cells: Sequence[Cell]) -> list[Sheet]:
    """One for each question, task, length and figure."""
    groups: dict[tuple[str, str, str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        for name in cell.figures:
            groups[(cell.question, cell.task, cell.length, name)].append(cell)
    return [_sheet(*key, group) for key, group in groups.items()]


def _sheet(question: str, task: str, length: str, figure: str, cells: Sequence[Cell]) -> Sheet:
    budgets = tuple(dict.fromkeys(cell.budget for cell in cells if cell.policy != FULL))
    policies = tuple(dict.fromkeys(cell.policy for cell in cells if cell.policy != FULL))
    found = {(cell.policy, cell.budget): cell.figures[figure] for cell in cells}
    words = {cell: value_text(figure, *value) for cell, value in found.items()}
    full = words.get((FULL, FULL), "")
    rows = tuple((policy, *(words.get((policy, budget), "") for budget in budgets), full) for policy in policies)
    n = max(cell.n for cell in cells)
    asked = "" if figure in _NAMES else f", question {question}"
    name = _NAMES.get(figure, figure)
    return Sheet(f"{task}, {length}{asked}: {name} ({n} cases)", ("policy", *budgets, FULL), rows or (("", full),))


def value_text(figure: str, mean: float, error: float) -> str:
    """A mean and its standard error, as in the tables."""
    factor, digits = (1, 4) if figure == "kl" else (100, 1)
    words = f"{factor * mean:.{digits}f}"
    return words if math.isnan(error) else f"{words} ±{factor * error:.{digits}f}"


def tables(cells: Sequence[Cell]) -> Iterable[Table]:
    """For a terminal."""
    for sheet in sheets(cells):
        table = Table(title=sheet.title, title_justify="left", title_style="bold")
        for i, column in enumerate(sheet.columns):
            table.add_column(column, justify="right" if i else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*row)
        yield table


def markdown(cells: Sequence[Cell], title: str, facts: Sequence[tuple[str, str]], pictures: Sequence[str] = ()) -> str:
    """A report.

    Parameters
    ----------
    facts
        name and value: the model, the command, and what else is needed to do it again
    pictures
        file names beside the report
    """
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts), "", NOTE, ""]
    for sheet in sheets(cells):
        lines += [f"## {sheet.title}", "", _line(sheet.columns), _line(["---"] * len(sheet.columns))]
        lines += [*map(_line, sheet.rows), ""]
    lines += _bytes_lines(cells)
    lines += [line for name in pictures for line in (f"![{name}]({name})", "")]
    return "\n".join(lines)


def _bytes_lines(cells: Sequence[Cell]) -> list[str]:
    """Bytes of the rows kept, means over all cases of a length."""
    groups: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for cell in cells:
        groups[(cell.length, cell.policy, cell.budget)] += [cell.bytes_kept] * cell.n
    lines = ["## Bytes of the rows kept", "", _line(["length", "policy", "budget", "MiB"]), _line(["---"] * 4)]
    for (length, policy, budget), values in groups.items():
        lines.append(_line([length, policy, budget, f"{sum(values) / len(values) / 2**20:.2f}"]))
    return [*lines, ""]


def _line(words: Iterable[str]) -> str:
    return f"| {' | '.join(words)} |"
