"""Chats about one text: the same arguments draw the same ones, and their table compares with the whole cache."""

from __future__ import annotations

import pytest

from pyheadkv.cli.parsing import parse_archives
from pyheadkv.errors import EvaluationError, UsageError
from pyheadkv.evaluate.results import FULL
from pyheadkv.evaluate.talk_report import turn_tables
from pyheadkv.evaluate.tasks import Prose
from pyheadkv.evaluate.tasks.make import Sizes
from pyheadkv.evaluate.tasks.talks import MAX_TURNS, make_talks
from pyheadkv.files.jsonl import Record

SIZES = Sizes(lambda text: len(text.split()), 20)


def test_facts_stand_in_the_text_and_are_asked_for_once() -> None:
    for talk in make_talks(12, 3, 400, 0, Prose(), SIZES):
        assert len(talk.turns) == len({turn.kind for turn in talk.turns}) == 3
        for turn in talk.turns:
            assert talk.context.count(turn.answer) >= 1 and turn.answer not in turn.question
        assert (talk.question, talk.answers) == (talk.turns[0].question, (talk.turns[0].answer,))
        assert SIZES.count(talk.message) <= 400


def test_more_chats_begin_with_the_same_ones() -> None:
    few, many = (make_talks(n, 3, 400, 7, Prose(), SIZES) for n in (2, 5))
    assert many[:2] == few
    assert make_talks(2, 3, 400, 8, Prose(), SIZES) != few


def test_the_first_question_is_about_any_place_of_the_text() -> None:
    """All orders are asked in."""
    places = set()
    for talk in make_talks(24, 3, 400, 0, Prose(), SIZES):
        order = sorted(range(3), key=lambda i: talk.context.index(talk.turns[i].answer))
        places.add(tuple(order))
    assert len(places) == 6


def test_no_room_for_the_facts() -> None:
    with pytest.raises(EvaluationError, match="3 facts do not fit into 30 tokens"):
        make_talks(1, 3, 30, 0, Prose(), SIZES)
    assert MAX_TURNS >= 3


def record(case: str, policy: str, budget: str, *turns: float) -> Record:
    figures = {f"turn {i + 1}": score for i, score in enumerate(turns)} | {"score": 0.0}
    return {"case": case, "policy": policy, "budget": budget, "length": "1k", "figures": figures}


def test_table_of_differences() -> None:
    records = [
        record("a", FULL, FULL, 1, 1),
        record("b", FULL, FULL, 1, 0),
        record("a", "auto, none", "5%", 1, 0),
        record("b", "auto, none", "5%", 1, 0),
    ]
    lines = turn_tables(records).splitlines()
    assert lines[0].startswith("Right answers in 2 chats, 1k")
    assert lines[2] == "| policy, rows that are not kept | kept | turn 1 | turn 2 |"
    assert lines[4] == "| full | full | 100.0 ±0.0 | 50.0 ±50.0 |"
    assert lines[5] == "| auto, none | 5% | 100.0 ±0.0 (0.0 ±0.0) | 0.0 ±0.0 (-50.0 ±50.0) |"


def test_kinds_of_archives() -> None:
    assert parse_archives("none, archive,none") == ("none", "archive")
    with pytest.raises(UsageError, match="--archives 'all' is unknown, expected archive, as-generated, none"):
        parse_archives("all")
