"""An answer that goes round in a loop is told from one that repeats lines as poems, tables and code do."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyheadkv.chat.loops import LoopWatch

POEM = "\n".join(
    f"{line}\nRow, row, row your boat, and sing the old refrain,\nrow, row, row your boat, till we are home again."
    for line in (
        "The morning light is on the quay, the gulls are in the rain,",
        "The harbour bell has told the hour, the tide is on the main,",
        "The keeper trims the yellow lamp, and turns it up again,",
        "The winter folds its paper wings above the window pane,",
        "The children count the passing masts, the tall ones and the plain,",
        "The ropes are coiled, the nets are dry, the sails have lost their stain,",
        "The old men mend what storms have torn, and never once complain,",
        "The letters come, the letters go, by packet and by train,",
        "The evening lays its blue coat down on meadow and on lane,",
        "The stars come out by ones and twos, like drops upon a chain,",
    )
)
TABLE = "| station | wind | rain | note |\n| --- | --- | --- | --- |\n" + "\n".join(
    f"| Nordhavn | calm | none | nothing to report on day {day} |" for day in range(1, 40)
)
MATRIX = "\n".join(" ".join(str(int(i == j)) for j in range(16)) for i in range(16))
CODE = "\n".join(f"    table[{i}] = 0;\n    count += 1;\n    count += 1;\n    count += 1;" for i in range(40))
LIST = "\n".join(f"{i}. Be kind to others, and to yourself." for i in range(1, 60))


def stops_at(tokens: Sequence[int]) -> int | None:
    """How many tokens are taken before the watch says stop; None is all."""
    watch = LoopWatch()
    return next((i + 1 for i, token in enumerate(tokens) if watch(token)), None)


def is_loop(tokens: Sequence[int]) -> bool:
    """The definition, word by word: the end is some 1 to 64 tokens at least 8 times, and at least 128 tokens."""
    ends = [(period, tokens[-max(8 * period, 128) :]) for period in range(1, 65)]
    return any(
        len(end) == max(8 * period, 128) and all(end[i] == end[i % period] for i in range(len(end)))
        for period, end in ends
    )


@pytest.mark.parametrize("period", [1, 2, 3, 15, 16, 17, 63, 64])
@pytest.mark.parametrize("n_before", [0, 1, 300])
def test_loops_of_every_length_are_seen_at_their_first_chance(period: int, n_before: int) -> None:
    before = list(range(1000, 1000 + n_before))
    loop = [i % period for i in range(600)]
    assert stops_at(before + loop) == n_before + max(8 * period, 128)


def test_65_tokens_over_and_over_are_no_loop() -> None:
    assert stops_at([i % 65 for i in range(2000)]) is None


@pytest.mark.parametrize("text", [POEM, TABLE, MATRIX, CODE, LIST], ids=["poem", "table", "matrix", "code", "list"])
def test_text_that_repeats_lines_is_no_loop(text: str) -> None:
    words: dict[str, int] = {}
    for token in (r"\S+|\n", r".+", r"(?s)."):  # words, lines, characters
        assert stops_at([words.setdefault(word, len(words)) for word in re.findall(token, text)]) is None


@given(st.lists(st.integers(0, 3), max_size=70), st.integers(0, 140), st.lists(st.integers(0, 3), max_size=70))
def test_the_watch_says_what_the_definition_says(before: list[int], times: int, pattern: list[int]) -> None:
    tokens = (before + pattern * times)[:700]
    stop = stops_at(tokens)
    assert (stop is not None) == any(is_loop(tokens[: i + 1]) for i in range(len(tokens)))
    assert stop is None or (is_loop(tokens[:stop]) and not is_loop(tokens[: stop - 1]))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=63), st.integers(1, 30))
def test_lines_that_differ_in_one_token_are_no_loop(line: list[int], n_lines: int) -> None:
    assert stops_at([token for i in range(n_lines) for token in [*line, 100 + i]]) is None
