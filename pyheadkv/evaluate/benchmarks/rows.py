"""Rows of a file: JSON lines, a JSON array, Parquet, or one of these inside a zip archive."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyheadkv.errors import EvaluationError, UsageError, one_line
from pyheadkv.evaluate.cases import read_json_text
from pyheadkv.files.plain_text import decode_text

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A file with rows.

    Parameters
    ----------
    member
        name within the zip archive that the path is
    task
        only rows of this task are wanted; "" is all
    """

    path: Path
    member: str = ""
    task: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.path}, {self.member}" if self.member else str(self.path)

    @property
    def place(self) -> Path:
        """Folders and name of the file that holds the rows."""
        return Path(self.member) if self.member else self.path.absolute()


def read_rows(source: Source) -> list[Row]:
    """All rows of a file.

    Raises
    ------
    EvaluationError
        the file cannot be read
    UsageError
        it is Parquet, and pyarrow is missing
    """
    if source.place.suffix == ".parquet":
        rows = _parquet(source)
    elif source.member:
        rows = _json(source, decode_text(_unzip(source), source.name, EvaluationError))
    else:
        rows = _json(source, read_json_text(source.path))
    return [row for row in rows if not source.task or row.get("task") == source.task]


def _unzip(source: Source) -> bytes:
    try:
        with zipfile.ZipFile(source.path) as archive:
            names = sorted(name for name in archive.namelist() if Path(name).suffix == ".jsonl")
            if source.member not in names:
                there = ", ".join(Path(name).stem for name in names)[:400]
                raise EvaluationError(f"{source.path} has no {source.member}, it has {there or 'no JSON lines'}")
            return archive.read(source.member)
    except zipfile.BadZipFile:
        raise EvaluationError(f"{source.path} is a damaged zip archive") from None
    except OSError as error:
        raise EvaluationError(f"{source.path} cannot be read: {error.strerror or error}") from None


def _json(source: Source, text: str) -> list[Row]:
    """Line by line, unless all of it is one array."""
    if text.lstrip().startswith("["):
        rows = _value(source, 1, text)
    else:
        rows = [_value(source, n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"{source.name} is no list of JSON objects")
    return rows


def _value(source: Source, n: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{source.name}, line {n}: {one_line(error)[:160]}") from None


def _parquet(source: Source) -> list[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        message = f"{source.name} is Parquet, which needs pyarrow: pip install 'pyheadkv[bench]'"
        raise UsageError(message) from None
    try:
        with source.path.open("rb") as file:
            rows: list[Row] = parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise EvaluationError(f"{source.name} cannot be read: {one_line(error)[:160]}") from None
    return rows
