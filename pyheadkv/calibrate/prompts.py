"""From a text and a question to tokens, and from parts of the text to the positions of their tokens.

A prompt is tokenized whole, as in a chat, since tokens may reach over any border. Positions are found by the bytes that
each token stands for, and it is checked that these bytes are the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyheadkv.calibrate.scores import Positions
from pyheadkv.engine.llama import is_end
from pyheadkv.engine.llama import piece as piece_of
from pyheadkv.engine.template import ChatPrompt, ChatTemplate, plain_prompt, template_source
from pyheadkv.errors import CalibrationError

if TYPE_CHECKING:
    import llama_cpp


@dataclass(frozen=True)
class Prompt:
    """Text with its tokens; token i stands for the bytes from starts[i] to ends[i] of the text."""

    text: str
    tokens: list[int]
    starts: Positions
    ends: Positions

    def positions(self, part: str) -> Positions:
        """Positions of all tokens that a part of the text has bytes in. It must stand there once.

        Returns
        -------
        int64, ascending
        """
        text, wanted = self.text.encode(), part.encode()
        start = text.find(wanted)
        if start < 0 or text.find(wanted, start + 1) >= 0:
            raise ValueError(f"{part!r} stands {text.count(wanted)} times in the prompt, expected once")
        found: Positions = np.flatnonzero((self.starts < start + len(wanted)) & (self.ends > start))
        return found


def align(pieces: Sequence[bytes], text: bytes) -> tuple[Positions, Positions]:
    """Where in the text each token's bytes lie.

    Some tokenizers add a space before a piece, and some special tokens swallow the space beside them; both are allowed
    for. A token that adds nothing to the text (one for its beginning) has equal start and end.

    Returns
    -------
    starts, ends

    Raises
    ------
    CalibrationError
        the tokens do not give the text back
    """
    starts: list[int] = []
    ends: list[int] = []
    at = 0
    for piece in pieces:
        blank = len(text) - at - len(text[at:].lstrip())
        if text.startswith(piece, at):
            start = at
        elif piece.startswith(b" ") and text.startswith(piece[1:], at):
            start, piece = at, piece[1:]
        elif blank and text.startswith(piece, at + blank):
            start = at + blank
        else:
            rest = text[at : at + 16]
            raise CalibrationError(
                f"the tokenizer changes the text: token {len(starts)} is {piece!r}, the text goes on {rest!r}"
            )
        starts.append(start)
        at = start + len(piece)
        ends.append(at)
    if text[at:].strip():
        raise CalibrationError(f"the tokenizer changes the text: no token for {text[at : at + 16]!r}")
    return np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)


class Prompter:
    """Writes prompts in the way of a model: by its chat template if it has one, else as plain text."""

    def __init__(self, llama: llama_cpp.Llama) -> None:
        self._llama = llama
        self._pieces: dict[int, bytes] = {}
        self._template = ChatTemplate(llama) if template_source(llama) is not None else None

    def prompt(self, message: str, answer: str) -> Prompt:
        """A user's message and the beginning of the model's answer.

        Raises
        ------
        CalibrationError
            the tokenizer changes the text
        """
        written = self._write(message, answer)
        text = written.text.encode()
        pieces = [self.piece(token) for token in written.tokens]
        pieces[: written.n_added] = [b""] * written.n_added
        return Prompt(written.text, written.tokens, *align(pieces, text))

    def _write(self, message: str, answer: str) -> ChatPrompt:
        if self._template:
            return self._template.prompt([{"role": "user", "content": message}], answer)
        return plain_prompt(self._llama, f"{message}\n{answer}")

    def count(self, text: str) -> int:
        """Tokens of a piece of text."""
        return len(self._llama.tokenize(text.encode(), add_bos=False, special=False))

    def piece(self, token: int) -> bytes:
        """Bytes that a token stands for, markers of a chat written out."""
        if token not in self._pieces:
            self._pieces[token] = piece_of(self._llama, token)
        return self._pieces[token]

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return is_end(self._llama, token)
