"""Which positions of a prompt are kept whole: those of texts that the user marked, looked for among its tokens.

A text is looked for in the bytes that the tokens stand for, so it does not matter how a chat template cuts it; white
space around it is left out, since templates do so too. Its first occurrence counts, from the token in which it begins
to the one in which it ends. All KV heads keep these rows, beside sinks and observation window, and the budget pays for
them: each is a row less for what the scorer chooses.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

Span = tuple[int, int]


def find_spans(tokens: Sequence[int], texts: Sequence[str], piece: Callable[[int], bytes]) -> list[Span | None]:
    """Positions [first, end) of the first occurrence of each text; None where there is none.

    Parameters
    ----------
    tokens
        the whole prompt
    piece
        the bytes that a token stands for
    """
    pieces = [piece(token) for token in tokens]
    prompt, ends = b"".join(pieces), list(accumulate(map(len, pieces)))
    return [_span_of(text.strip().encode(), prompt, ends) for text in texts]


def _span_of(text: bytes, prompt: bytes, ends: Sequence[int]) -> Span | None:
    """`ends` are where the tokens' bytes end."""
    at = prompt.find(text)
    if at < 0 or not text:
        return None
    return bisect_right(ends, at), bisect_left(ends, at + len(text)) + 1


def short_text(text: str) -> str:
    """A text in a message, cut to one short line."""
    words = " ".join(text.split())
    return repr(words if len(words) <= 40 else f"{words[:37]}...")


def join_spans(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The same positions as spans in order that do not touch; empty ones are left out."""
    joined: list[Span] = []
    for first, end in sorted(spans):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif first < end:
            joined.append((first, end))
    return tuple(joined)


def choose_spans(
    spans: Sequence[Span], n_recent: int, first: int, end: int, room: int
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Spans that are protected, and those that have no room.

    Parameters
    ----------
    spans
        in the order of their importance; each is protected whole or not at all
    n_recent
        of the positions before `end`, so many shall be protected too, as far as the spans leave room
    first, end
        only what lies in [first, end) costs anything: the rest is kept anyway
    room
        positions that may be protected there

    Returns
    -------
    (protected, left out)
        the former within [first, end), in order, apart
    """
    chosen: tuple[Span, ...] = ()
    left_out = []
    for span in spans:
        clipped = (max(span[0], first), min(span[1], end))
        more = join_spans([*chosen, clipped])
        if _n_positions(more) <= room:
            chosen = more
        else:
            left_out.append(span)
    n_recent = min(n_recent, room - _n_positions(chosen), end - first)
    return join_spans([*chosen, (end - n_recent, end)]), tuple(left_out)


def _n_positions(spans: Sequence[Span]) -> int:
    return sum(end - first for first, end in spans)
