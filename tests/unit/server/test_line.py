"""A line in which clients take turns."""

from __future__ import annotations

import threading

import pytest

from pyheadkv.server.line import FullError, Line


def test_clients_take_turns() -> None:
    line: Line[str] = Line(10)
    for client, item in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")]:
        line.put(client, item)
    assert [line.take() for _ in range(6)] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    line.put("b", "b3")
    line.put("a", "a4")
    assert (line.take(), line.take()) == ("b3", "a4")


def test_a_full_line_takes_no_more() -> None:
    line: Line[int] = Line(2)
    line.put("a", 1)
    assert not line.is_full
    line.put("b", 2)
    assert line.is_full
    with pytest.raises(FullError, match="2 requests wait"):
        line.put("c", 3)
    assert line.take() == 1
    line.put("c", 3)
    assert (line.take(), line.take(), len(line)) == (2, 3, 0)


def test_who_leaves_makes_room() -> None:
    line: Line[int] = Line(2)
    line.put("a", 1)
    line.put("a", 2)
    assert line.remove("a", 1) and not line.remove("a", 1) and not line.remove("b", 2)
    line.put("b", 3)
    assert (line.take(), line.take(), len(line)) == (2, 3, 0)


def test_closing_wakes_the_taker_and_gives_back_what_waits() -> None:
    line: Line[int] = Line(2)
    taken: list[object] = []
    taker = threading.Thread(target=lambda: taken.append(line.take()))
    taker.start()
    assert line.close() == []
    taker.join(10)
    assert taken == [None] and not taker.is_alive()
    with pytest.raises(FullError, match="stops"):
        line.put("a", 1)
    other: Line[int] = Line(2)
    other.put("a", 1)
    assert other.close() == [1] and other.take() is None
