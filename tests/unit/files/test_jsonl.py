"""JSON lines that can be gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyheadkv.errors import CalibrationError
from pyheadkv.files.jsonl import JsonLines


@pytest.fixture
def file(tmp_path: Path) -> JsonLines:
    return JsonLines(tmp_path / "f.jsonl", CalibrationError)


def test_what_was_written_is_read(file: JsonLines) -> None:
    assert file.read() == []
    file.add({"a": 1})
    file.add({"text": "one\u2028two\x85three\r\nfour \ud800"})
    assert file.read() == [{"a": 1}, {"text": "one\u2028two\x85three\r\nfour \ud800"}]
    file.write([{"b": 2}])
    assert file.read() == [{"b": 2}]


@pytest.mark.parametrize("line", ['{"a": 1', "[1]", "3", "[" * 100_000, "\xff"])
def test_a_line_that_is_no_object_keeps_its_place(file: JsonLines, line: str) -> None:
    assert file.path is not None
    file.path.write_bytes(b"{}\n" + line.encode("latin-1") + b'\n{"b": 2}\n')
    assert file.read() == [{}, None, {"b": 2}]


def test_no_file_keeps_nothing() -> None:
    file = JsonLines(None, CalibrationError)
    file.add({"a": 1})
    assert file.read() == []


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    file = JsonLines(tmp_path, CalibrationError)
    with pytest.raises(CalibrationError, match="is a folder, expected a file to write"):
        file.read()
    with pytest.raises(CalibrationError, match="is a folder, expected a file to write"):
        file.add({})
