"""Results as a table for a terminal and as Markdown.

A cell is the mean with its standard error: 87.5 ±4.1 is 87.5 % of the points (score) over the cases of the cell.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pyheadkv.cache.stats import mib
from pyheadkv.evaluate.compare import MAIN, MIN_CASES, N_ERRORS, Comparison
from pyheadkv.evaluate.results import FULL, Cell, by_figure

NOTE = (
    "Means over the cases of a cell ± one standard error; a difference within the errors is no gain. "
    "score, digits and top1 in %, kl and loglik in nats, ms a token the median of each case. full is the whole cache."
)
_PAIRED = (
    "Mean of the first minus the second over the same cases ± its standard error. A difference counts from "
    f"{N_ERRORS} standard errors and {MIN_CASES} cases on."
)
_MEASURED = "Measured: the buffers that exist when the answer is given, its own rows and free cells included."
_NAMES = {
    "kl": "KL to the full cache",
    "top1": "top-1 agreement",
    "loglik": "log-likelihood of the answer",
    "ms_token": "decoding, ms a token",
}
_DIGITS = {"kl": 4, "loglik": 3, "perplexity": 2, "ms_token": 2}  # of what is not in %
_WITHOUT_QUESTION = ("kl", "top1", "perplexity", "ms_token")


@dataclass(frozen=True)
class Sheet:
    """A table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sheets(cells: Sequence[Cell], figures: Sequence[str] = ()) -> list[Sheet]:
    """One for each question, task, length and figure: a row for each policy, a column for each budget."""
    return [_sheet(*key, group) for key, group in by_figure(cells, figures).items()]


def _sheet(question: str, task: str, length: str, figure: str, cells: Sequence[Cell]) -> Sheet:
    budgets = tuple(dict.fromkeys(cell.budget for cell in cells if cell.policy != FULL))
    words = {(cell.cache, cell.policy, cell.budget): value_text(figure, *cell.figures[figure]) for cell in cells}
    policies = {(cell.cache, cell.policy): cell.label for cell in cells if cell.policy != FULL}
    rows = tuple(
        (label, *(words.get((*key, budget), "") for budget in budgets), words.get((key[0], FULL, FULL), ""))
        for key, label in policies.items()
    )
    n = max(cell.n for cell in cells)
    title = f"{_title(question, task, length, figure)} ({n} cases)"
    return Sheet(title, ("policy", *budgets, FULL), rows or tuple((cell.label, *words.values()) for cell in cells))


def byte_sheets(cells: Sequence[Cell]) -> list[Sheet]:
    """All that was measured of a task on one axis: bytes. None where there is one cache type only."""
    if len({cell.cache for cell in cells}) < 2:
        return []
    return [
        Sheet(
            f"{_title(*key)}, over bytes of the cache",
            ("policy", "budget", "rows kept, %", "measured MiB", key[3]),
            tuple(
                (
                    cell.label,
                    cell.budget,
                    f"{100 * cell.keep_ratio:.1f}",
                    mib(cell.bytes_measured, digits=2),
                    value_text(key[3], *cell.figures[key[3]]),
                )
                for cell in sorted(group, key=lambda cell: cell.bytes_measured)
            ),
        )
        for key, group in by_figure(cells, MAIN).items()
    ]


def pair_sheet(comparisons: Sequence[Comparison]) -> Sheet:
    """Differences of policies."""
    rows = tuple(
        (
            _title(found.question, found.task, found.length, found.figure),
            found.budget,
            f"{found.first} - {found.second}",
            str(found.n),
            value_text(found.figure, found.difference, found.error),
            found.verdict,
        )
        for found in comparisons
    )
    return Sheet("Paired differences", ("figure", "budget", "policies", "cases", "difference", ""), rows)


def value_text(figure: str, mean: float, error: float) -> str:
    """A mean and its standard error, as in the tables."""
    factor, digits = (1, _DIGITS[figure]) if figure in _DIGITS else (100, 1)
    words = f"{factor * mean:.{digits}f}"
    return words if math.isnan(error) else f"{words} ±{factor * error:.{digits}f}"


def tables(sheets: Iterable[Sheet]) -> Iterable[Group]:
    """For a terminal. Titles stand before the tables, since a table breaks a title that is wider than itself."""
    for sheet in sheets:
        table = Table()
        for i, column in enumerate(sheet.columns):
            table.add_column(column, justify="right" if i else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*row)
        yield Group(Text(sheet.title, style="bold"), table)


def markdown(
    cells: Sequence[Cell],
    comparisons: Sequence[Comparison],
    title: str,
    facts: Sequence[tuple[str, str]],
    pictures: Sequence[str] = (),
) -> str:
    """A report.

    Parameters
    ----------
    facts
        name and value: the model, the command, and what else is needed to do it again
    pictures
        file names beside the report
    """
    lines = [f"# {title}", "", *(f"- {name}: {value}" for name, value in facts), "", NOTE, ""]
    for sheet in [*sheets(cells), *byte_sheets(cells)]:
        lines += _section(sheet)
    if comparisons:
        lines += _section(pair_sheet(comparisons), _PAIRED)
    lines += _section(_bytes_sheet(cells), _MEASURED)
    lines += [line for name in pictures for line in (f"![{name}]({name})", "")]
    return "\n".join(lines)


def main_tables(cells: Sequence[Cell]) -> str:
    """The figures that policies are compared by, as Markdown without headings: for a place within another text."""
    parts = [
        line
        for sheet in sheets(cells, MAIN)
        for line in (f"{sheet.title}, ± one standard error:", "", *_table(sheet), "")
    ]
    return "\n".join(parts)


def _bytes_sheet(cells: Sequence[Cell]) -> Sheet:
    """Bytes of the cache, means over all cases of a length."""
    groups: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[(cell.length, cell.label, cell.budget)].append(cell)
    rows = []
    for key, group in groups.items():
        n = sum(cell.n for cell in group)
        kept, measured = (sum(getattr(c, name) * c.n for c in group) / n for name in ("bytes_kept", "bytes_measured"))
        rows.append((*key, mib(kept, digits=2), mib(measured, digits=2)))
    return Sheet("Bytes of the cache", ("length", "policy", "budget", "rows kept, MiB", "measured MiB"), tuple(rows))


def _title(question: str, task: str, length: str, figure: str) -> str:
    asked = "" if figure in _WITHOUT_QUESTION else f", question {question}"
    return f"{task}, {length}{asked}: {_NAMES.get(figure, figure)}"


def _section(sheet: Sheet, note: str = "") -> list[str]:
    return [f"## {sheet.title}", "", *([note, ""] if note else []), *_table(sheet), ""]


def _table(sheet: Sheet) -> list[str]:
    return [_line(sheet.columns), _line(["---"] * len(sheet.columns)), *map(_line, sheet.rows)]


def _line(words: Iterable[str]) -> str:
    return f"| {' | '.join(words)} |"
