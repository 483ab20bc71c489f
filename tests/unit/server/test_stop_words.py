"""Stop words in text that comes piece by piece."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyheadkv.server.stop_words import StopWords


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_pieces_end_where_the_whole_text_would(text: str, words: list[str], data: st.DataObject) -> None:
    """Whatever the pieces are; of a word within another one, the one that is whole first counts."""
    stop, shown, at = StopWords(words), "", 0
    while at < len(text) and not stop.is_found:
        n = data.draw(st.integers(1, len(text) - at))
        shown += stop.feed(text[at : at + n])
        at += n
    whole = StopWords(words)
    said = whole.feed(text[:at])
    assert (shown, stop.is_found) == (said, whole.is_found)
    assert shown + stop.flush() == (said if whole.is_found else text)
    assert whole.is_found == any(word in text[:at] for word in words)


def test_only_what_may_begin_a_word_is_held_back() -> None:
    stop = StopWords(["<end>", "\n\n"])
    assert [stop.feed(piece) for piece in ("one <", "em> two\n", "three <en", "d")] == [
        "one ",
        "<em> two",
        "\nthree ",
        "",
    ]
    assert not stop.is_found
    assert (stop.feed("> more"), stop.is_found, stop.flush()) == ("", True, "")
