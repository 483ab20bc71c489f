"""Output of `pyheadkv eval`: tables in the terminal, a Markdown report and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pyheadkv.cli.render import note
from pyheadkv.errors import EvaluationError, UsageError
from pyheadkv.evaluate.compare import comparisons
from pyheadkv.evaluate.plots import write_bytes, write_curves, write_depths
from pyheadkv.evaluate.report import byte_sheets, markdown, sheets, tables
from pyheadkv.evaluate.results import FULL, Cell, cells, label_of
from pyheadkv.files.jsonl import Record
from pyheadkv.files.targets import writing

REPORT, CURVES, BYTES, DEPTHS = FILES = ("report.md", "quality.png", "bytes.png", "depths.png")


def write_report(title: str, facts: Sequence[tuple[str, str]], records: Sequence[Record], folder: Path) -> None:
    """Print tables, write report.md and the pictures into a folder.

    Parameters
    ----------
    facts
        name and value: what is needed to do it again

    Raises
    ------
    EvaluationError
        a file cannot be written
    """
    found = cells(records)
    printer = Console(highlight=False)
    for table in tables([*sheets(found), *byte_sheets(found)]):
        printer.print(table)
    pictures = _draw(found, records, folder)
    text = markdown(found, comparisons(records), title, [*facts, *_resolved(records)], pictures)
    path = folder / REPORT
    with writing(path, EvaluationError):
        path.write_text(text, encoding="utf-8")
    print(path)


def _draw(found: Sequence[Cell], records: Sequence[Record], folder: Path) -> list[str]:
    try:
        write_curves(found, folder / CURVES)
        has_bytes = write_bytes(found, folder / BYTES)
        has_depths = write_depths(records, folder / DEPTHS)
    except UsageError as error:
        note(f"no pictures: {error}")
        return []
    return [CURVES, *([BYTES] if has_bytes else []), *([DEPTHS] if has_depths else [])]


def _resolved(records: Sequence[Record]) -> list[tuple[str, str]]:
    """The policy that each one came to at each budget, with all its settings."""
    has_caches = len({record["cache"] for record in records}) > 1
    found = {(label_of(record, has_caches), record["budget"]): record for record in records}
    return [
        (f"{label} at {budget}", record["resolved"])
        for (label, budget), record in found.items()
        if record["resolved"] not in (record["policy"], FULL)
    ]
