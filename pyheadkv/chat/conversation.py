"""A conversation with a model: messages, text files that go along with the next one, and the answer as a stream.

Whatever goes wrong while a message is answered, the conversation is as if it had not been sent, and its files wait for
the next one; an answer that was stopped halfway counts as far as it got.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import closing
from typing import Any

from pyheadkv.chat.loops import LoopWatch
from pyheadkv.chat.sampling import Sampling
from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.llama import context_length
from pyheadkv.engine.template import ChatTemplate, plain_prompt, template_source
from pyheadkv.errors import UsageError, one_line

_TOO_LONG = re.compile(r"Requested tokens \((\d+)\) exceed context window of (\d+)")  # llama-cpp-python's words


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
    stop_loops
        end an answer that says the same over and over

    Raises
    ------
    ModelError
        the model's chat template cannot be used
    """

    def __init__(self, headkv: HeadKV, system: str | None, sampling: Sampling, stop_loops: bool = True) -> None:
        self.headkv = headkv
        self.sampling = sampling
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.attachments: list[str] = []
        self.stop_loops = stop_loops
        self.is_full = False
        self.finish: str | None = None  # why the last answer ended: "stop", "length" or "loop"; None: it was broken off
        has_template = template_source(headkv.llama) is not None
        self.template = ChatTemplate(headkv.llama, headkv.on_notice) if has_template else None
        self.clear()

    def clear(self) -> None:
        """Forget everything but the system prompt."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.attachments = []
        self.headkv.clear()

    def attach(self, name: str, text: str) -> None:
        """Put the text of a file into the next message, under the file's name."""
        self.attachments.append(f"--- File: {name} ---\n{text.rstrip()}\n")

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
        watch = LoopWatch()
        self.headkv.stop_when = watch if self.stop_loops else None
        self.finish = None
        try:
            chunks = llama.create_completion(prompt=self._tokens(), **self.sampling.options())
            with closing(chunks):
                for chunk in chunks:
                    choice = chunk["choices"][0]
                    self.finish = "loop" if watch.is_loop else choice["finish_reason"]
                    if self.finish and self.sampling.max_tokens == 0:
                        self.finish = "length"
                    self.is_full = self.finish == "length" and not self._has_room()
                    if choice["text"]:
                        yield choice["text"]
        except ValueError as error:
            raise UsageError(self._words(error)) from error

    def _tokens(self) -> list[int]:
        if self.template:
            return self.template.prompt(self.messages).tokens
        return plain_prompt(self.headkv.llama, "\n".join(message["content"] for message in self.messages)).tokens

    def _has_room(self) -> bool:
        stats = self.headkv.stats()
        return stats.n_prompt + stats.n_generated < context_length(self.headkv.llama)

    def _words(self, error: ValueError) -> str:
        match = _TOO_LONG.search(str(error))
        if match is None:
            return one_line(error)
        can_be_raised = int(match[2]) < self.headkv.shape.n_ctx_train
        advice = " or raise -c" if can_be_raised else ", the model was trained for no more"
        return f"the prompt has {match[1]} tokens, the context holds {match[2]}: shorten it{advice}"
