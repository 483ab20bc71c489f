"""Answers wrapped at words, as they stream."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from pyheadkv.cli.wrap import WordWrap, wrap_for_stdout

PROSE = "The ferry leaves at nine, and the tea in the old harbour is not what it has been."
ADDRESS = "https://example.org/a/very/long/address/that/is/longer/than/forty/columns"


def wrapped(text: str, columns: int, size: int = 1) -> str:
    """All that is shown when the text comes in pieces of so many characters."""
    one = WordWrap(columns)
    return "".join(one.feed(text[i : i + size]) for i in range(0, len(text), size)) + one.flush()


def rows(shown: str, columns: int) -> list[str]:
    """What a terminal makes of it: it breaks lines behind the last column."""
    found = [""]
    for char in shown:
        if char == "\n" or get_cwidth(found[-1] + char) > columns:
            found.append("")
        if char != "\n":
            found[-1] += char
    return found


def test_forty_columns() -> None:
    assert wrapped(PROSE, 40).split("\n") == [
        "The ferry leaves at nine, and the tea ",
        "in the old harbour is not what it has ",
        "been.",
    ]


def test_a_word_is_held_back_until_it_ends() -> None:
    one = WordWrap(40)
    assert [one.feed(piece) for piece in ("The fer", "ry", " ", "is\n", "late")] == ["The ", "", "ferry ", "is\n", ""]
    assert one.flush() == "late" and one.flush() == ""


words = st.lists(st.text("abcé.-", min_size=1, max_size=15), min_size=1, max_size=30)


@given(words, st.integers(16, 60), st.integers(1, 7))
def test_no_word_is_broken_and_copied_text_stays_whole(said: list[str], columns: int, size: int) -> None:
    text = " ".join(said)
    shown = wrapped(text, columns, size)
    assert shown.replace("\n", "") == text
    found = rows(shown, columns)
    assert found == shown.split("\n")  # the terminal itself breaks nothing
    assert [word for row in found for word in row.split()] == said
    for row, following in pairwise(found):
        assert len(row) + len(following.split(" ")[0]) > columns - 1  # and no line ends early


@given(st.text("ab 漢。\n`|\t😀\u0301", max_size=60), st.integers(1, 20), st.integers(2, 9))
def test_how_it_comes_in_pieces_does_not_matter(text: str, columns: int, size: int) -> None:
    shown = wrapped(text, columns)
    assert wrapped(text, columns, size) == shown == wrapped(text, columns, len(text) + 1)
    assert "".join(shown.split()) == "".join(text.split())


@pytest.mark.parametrize(
    "text",
    [
        ADDRESS,
        "港は寒く、古い茶屋の茶は昔ほど熱くない。船は九時に出るが、誰も時間を守らないので、" * 2,
        "漢字word" * 12,
        "e\u0301" * 30,
        "```python\nprint('a line of code that is longer than forty columns')  # kept\n\n    x = 1\n```",
        "| ferry | leaves at | costs | remarks of the captain |\n| --- | --- | --- | --- |",
        "first\n\n  - second\n",
    ],
)
def test_what_is_passed_on_as_it_is(text: str) -> None:
    assert wrapped(text, 40) == text


def test_a_long_word_begins_on_a_line_of_its_own() -> None:
    shown = wrapped(f"see {ADDRESS} for more of it, and so on and on", 40)
    assert shown == f"see \n{ADDRESS} for \nmore of it, and so on and on"


def test_prose_behind_code_is_wrapped_again() -> None:
    code = f"```\n{PROSE}\n```\n"
    assert wrapped(code + PROSE, 40) == code + wrapped(PROSE, 40)
    table = f"| {PROSE} |\n"
    assert wrapped(table + PROSE, 40) == table + wrapped(PROSE, 40)


def test_wide_characters_count_double() -> None:
    assert wrapped("漢字漢字漢字漢字 word", 20) == "漢字漢字漢字漢字 \nword"


def test_only_a_terminal_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    for is_terminal, shown in ((True, wrapped(PROSE, 40)), (False, PROSE)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal)
        one = wrap_for_stdout()
        assert one.feed(PROSE) + one.flush() == shown
