"""`pyheadkv capsules`: what lies in a folder that ingest and /save made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyheadkv.capsule.reader import read_contents
from pyheadkv.cli.options import CapsulesOptions
from pyheadkv.cli.render import error, note
from pyheadkv.errors import CapsuleError, UsageError
from pyheadkv.files.plain_text import size_text

SUFFIX = ".hkv"
_COLUMNS = ("file", "name", "model", "tokens", "turns", "size", "date")


def run(options: CapsulesOptions) -> None:
    """Print a line for each file, or one JSON object; files that cannot be read are named on stderr.

    Raises
    ------
    UsageError
        the folder cannot be read
    """
    try:
        paths = sorted(path for path in options.folder.iterdir() if path.suffix == SUFFIX and path.is_file())
    except OSError as problem:
        raise UsageError(f"{options.folder} cannot be read: {problem.strerror or problem}") from None
    found = []
    for path in paths:
        try:
            found.append(_describe(path))
        except CapsuleError as problem:
            error(problem)
    if options.as_json:
        print(json.dumps({"capsules": found}))
    elif found:
        print("\n".join(_table(found)))
    else:
        note(f"no capsules ({SUFFIX}) in {options.folder.absolute()}")


def _describe(path: Path) -> dict[str, Any]:
    contents = read_contents(path)
    return {
        "file": str(path),
        "name": contents.header.name,
        "model": contents.header.model,
        "tokens": len(contents.tokens),
        "tokens_with_rows": contents.n_rows,
        "turns": contents.n_turns,
        "bytes": contents.end + contents.n_dropped,
        "date": contents.date,
        "identity": dict(contents.header.identity),
    }


def _table(found: list[dict[str, Any]]) -> list[str]:
    """Columns as wide as what stands in them; names are what somebody typed, so without control characters."""
    rows = [[str({**it, "size": size_text(it["bytes"])}[column]) for column in _COLUMNS] for it in found]
    rows = [["".join(c if c.isprintable() else "?" for c in cell) for cell in row] for row in [list(_COLUMNS), *rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
