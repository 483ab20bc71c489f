"""Small capsules without a model: rows are numbers that tell where they belong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyheadkv.capsule.format import Header, Message
from pyheadkv.capsule.reader import FileId
from pyheadkv.capsule.writer import Saved, append_turn, write_capsule

CELL_BYTES = [(8, 6), (4, 2), (8, 8)]
HEADER = Header("made", "a model", "2026-11-29T12:00:00+00:00", "abc", {"model": "llama:1", "rope": ""}, CELL_BYTES)


def row(i: int, is_k: bool, position: int, token: int) -> npt.NDArray[np.uint8]:
    """A row of a position with a token."""
    size = CELL_BYTES[i][not is_k]
    return ((np.arange(size) * 7 + 31 * i + 97 * is_k + 13 * position + 5 * token) % 251).astype(np.uint8)


def expected_rows(i: int, is_k: bool, tokens: list[int], first: int = 0) -> npt.NDArray[np.uint8]:
    """Rows of tokens, uint8 [n, size]."""
    found = [row(i, is_k, first + j, token) for j, token in enumerate(tokens)]
    return np.array(found, dtype=np.uint8).reshape(len(tokens), CELL_BYTES[i][not is_k])


def made(tokens: list[int], n_rows: int | None = None, messages: int = 0) -> Saved:
    """A conversation of tokens and so many messages."""
    talk: list[Message] = [{"role": "user", "content": f"message {j}"} for j in range(messages)]

    def rows(i: int, is_k: bool, first: int, n: int) -> npt.NDArray[np.uint8]:
        return expected_rows(i, is_k, tokens[first : first + n], first)

    return Saved(tokens, len(tokens) if n_rows is None else n_rows, rows, talk, ["waiting"])


def write_turns(path: Path, turns: list[Saved]) -> FileId:
    """One file of several turns."""
    own = write_capsule(path, HEADER, turns[0])
    for turn in turns[1:]:
        append_turn(path, own, HEADER, turn)
    return own


def write_for_ever(path: Path) -> None:
    """Turn after turn, each cutting the one before, until the process is killed; says when one is finished."""
    own: FileId | None = None
    for n in range(1, 1_000_000):
        turn = made(tokens_of_turn(n), messages=n)
        if own is None:
            own = write_capsule(path, HEADER, turn)
        else:
            append_turn(path, own, HEADER, turn)
        print(n, flush=True)


def tokens_of_turn(n: int) -> list[int]:
    """Of `write_for_ever`: those of the turn before up to its half, then others."""
    return [token if token < 50 else token + n for token in range(100 + n % 7)]


if __name__ == "__main__":
    write_for_ever(Path(sys.argv[1]))
