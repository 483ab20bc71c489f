"""Tables between marks: what the measuring commands write there, and what they refuse."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from pyheadkv.errors import BenchError, UsageError
from pyheadkv.files.measured import Block, measured_head, redo_command

TEXT = (
    "# R\n\n<!-- measured: one -->\nold\n<!-- /measured -->\n\nmore\n<!-- measured: two -->\n<!-- /measured -->\nend\n"
)


def test_only_what_is_between_the_marks_changes(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    Block.parse(f"{path}#two").write("| a |\n|---|\n| é |\n\n", BenchError)
    assert path.read_text(encoding="utf-8") == TEXT.replace("two -->\n", "two -->\n| a |\n|---|\n| é |\n")
    Block.parse(f"{path}#one").write("new", BenchError)
    assert path.read_text(encoding="utf-8").count("new") == 1 and "old" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("README.md", "--readme README.md has no name of a table, expected FILE#NAME"),
        ("README.md#", "has no name of a table"),
        ("README.md#a b", "has no name of a table"),
        ("README.md#three", "README.md has no <!-- measured: three --> with <!-- /measured --> behind it"),
        ("open.md#one", "open.md has no <!-- measured: one -->"),
        ("nested.md#one", "nested.md has no <!-- measured: one -->"),
        ("none.md#one", "none.md cannot be read: No such file"),
        ("folder#one", "folder is a folder, expected a file to write"),
    ],
)
def test_no_such_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("README.md").write_text(TEXT)
    Path("open.md").write_text("<!-- measured: one -->\n")
    Path("nested.md").write_text("<!-- measured: one -->\n<!-- measured: two -->\n<!-- /measured -->\n")
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        Block.parse(target)
    assert Path("README.md").read_text() == TEXT


def test_the_command_that_redoes_a_table_says_not_where_figures_go() -> None:
    typed = ["/x/app.py", "eval", "demo", "--readme", "R.md#a", "--cases", "4", "-o", "out", "--policies", "a b"]
    assert redo_command(typed) == "pyheadkv eval demo --cases 4 --policies 'a b'"
    assert (
        redo_command(["p", "bench", "demo", "--readme=R.md#a", "--output=x", "-c", "2k"]) == "pyheadkv bench demo -c 2k"
    )


def test_head_has_command_day_and_machine() -> None:
    head = measured_head(["p", "bench", "demo"], date(2026, 11, 29))
    assert head.startswith("`pyheadkv bench demo` (2026-11-29, ") and head.endswith(" CPUs)")
