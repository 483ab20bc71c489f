"""A conversation with a model: messages, text files that go along with the next one, and the answer as a stream.

Whatever goes wrong while a message is answered, the conversation is as if it had not been sent, and its files wait for
the next one; an answer that was stopped halfway counts as far as it got.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from pyheadkv.errors import UsageError
from pyheadkv.reader import context_length
from pyheadkv.sampling import Sampling
from pyheadkv.session import HeadKV

_TOO_LONG = re.compile(r"Requested tokens \((\d+)\) exceed context window of (\d+)")  # llama-cpp-python's words


def read_text_file(path: Path) -> str:
    """Text of a UTF-8 file.

    Raises
    ------
    UsageError
        it cannot be read or is no text; says where
    """
    try:
        data = path.expanduser().read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    nul = data.find(b"\0")
    if nul >= 0:
        raise UsageError(f"{path} is not a text file: it has a NUL byte at offset {nul}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: byte {data[error.start]:#04x} at offset {error.start}") from error


class Conversation:
    """Messages to and from a model.

    Parameters
    ----------
    headkv
        wraps the Llama that answers
    system
        system prompt
    sampling
        how answers are chosen
    """

    def __init__(self, headkv: HeadKV, system: str | None, sampling: Sampling) -> None:
        self.headkv = headkv
        self.sampling = sampling
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.attachments: list[str] = []
        self.is_full = False
        self.clear()

    @property
    def has_template(self) -> bool:
        """Whether the model says how a chat is written; llama-cpp-python would silently take another model's way."""
        llama = self.headkv.llama
        return llama.chat_handler is not None or "tokenizer.chat_template" in llama.metadata

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.attachments = []
        self.headkv.clear()

    def attach(self, path: Path) -> int:
        """Put a text file into the next message; returns its length in characters."""
        text = read_text_file(path)
        self.attachments.append(f"--- File: {path.name} ---\n{text.rstrip()}\n")
        return len(text)

    def answer(self, text: str) -> Generator[str, None, None]:
        """Send a message and stream the answer, piece by piece.

        Raises
        ------
        UsageError
            the conversation is longer than the context; nothing was evaluated
        NativeError
            the model could not be evaluated
        """
        self.messages.append({"role": "user", "content": "\n".join([*self.attachments, text])})
        pieces: list[str] = []
        is_done = False
        try:
            with closing(self._stream()) as stream:
                for piece in stream:
                    pieces.append(piece)
                    yield piece
            is_done = True
        finally:
            if is_done or pieces:
                self.messages.append({"role": "assistant", "content": "".join(pieces)})
                self.attachments = []
            else:
                self.messages.pop()

    def _stream(self) -> Generator[str, None, None]:
        llama: Any = self.headkv.llama
        try:
            if self.has_template:
                chunks = llama.create_chat_completion(messages=self.messages, **self.sampling.options())
            else:
                text = "\n".join(message["content"] for message in self.messages)
                chunks = llama.create_completion(prompt=text, **self.sampling.options())
            with closing(chunks):
                for chunk in chunks:
                    choice = chunk["choices"][0]
                    self.is_full = choice["finish_reason"] == "length" and not self._has_room()
                    piece = choice["delta"].get("content") if "delta" in choice else choice["text"]
                    if piece:
                        yield piece
        except ValueError as error:
            raise UsageError(_words(error)) from error

    def _has_room(self) -> bool:
        stats = self.headkv.stats()
        return stats.n_prompt + stats.n_generated < context_length(self.headkv.llama)


def _words(error: ValueError) -> str:
    match = _TOO_LONG.search(str(error))
    if match:
        return f"the prompt has {match[1]} tokens, the context holds {match[2]}: shorten it or raise -c"
    return " ".join(str(error).split())  # a chat template that refuses the messages, for example
