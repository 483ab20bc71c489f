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

from pyheadkv.capsule.reader import Contents, read_contents
from pyheadkv.chat.loops import LoopWatch
from pyheadkv.chat.sampling import Sampling
from pyheadkv.chat.session import MIN_PROMPT, HeadKV
from pyheadkv.engine.beginning import n_same
from pyheadkv.engine.llama import context_length
from pyheadkv.engine.template import ChatTemplate, plain_prompt, template_source
from pyheadkv.errors import CapsuleError, UsageError, one_line

_TOO_LONG = re.compile(r"Requested tokens \((\d+)\) exceed context window of (\d+)")  # llama-cpp-python's words
# of messages, each of which tokenizers may join with what stands before it
_BEGINNINGS = ("What", "1", "\n\n", " the", "...", "\u00e9", "\u4e16")


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

    def read_attachments(self) -> None:
        """Begin the conversation with what is attached, as far as any message behind it leaves its tokens as they are.

        Raises
        ------
        UsageError
            nothing is attached, or it is longer than the context
        NativeError
            the model could not be evaluated
        """
        if not self.attachments:
            raise UsageError("nothing is attached that could be read")
        prompts = [self._tokens([*self.messages, self._user_message(text)]) for text in _BEGINNINGS]
        self.headkv.read_whole(prompts[0][: n_same(*prompts)])

    def save(self, path: str | Path, *, name: str = "", overwrite: bool = False) -> Contents:
        """Save the conversation, or one more turn of it: as `HeadKV.save`."""
        return self.headkv.save(
            path, name=name, messages=self.messages, attachments=self.attachments, overwrite=overwrite
        )

    def load(self, path: str | Path, *, is_shared: bool = False) -> Contents:
        """Go on with a conversation that was saved, and its system prompt; this one is forgotten.

        Raises
        ------
        CapsuleError, NativeError
            as of `HeadKV.load`; or no chat was saved
        """
        contents = read_contents(path)
        if not (contents.messages or contents.attachments):
            raise CapsuleError(f"{path} has tokens and no messages: a program saved it (HeadKV.load opens it)")
        contents = self.headkv.load(path, is_shared=is_shared)
        self.messages = [dict(message) for message in contents.messages]
        self.attachments = list(contents.attachments)
        first = self.messages[0] if self.messages else {}
        self.system = first["content"] if first.get("role") == "system" else None
        self.is_full = False
        self._say_what_differs(contents)
        return contents

    def _say_what_differs(self, contents: Contents) -> None:
        """The end of an answer may be tokens of another kind when it is written anew; a text may not."""
        prompt, saved = (
            self._tokens([*self.messages, self._user_message("?")]),
            contents.tokens[: contents.n_rows].tolist(),
        )
        n_other = contents.n_rows - n_same(prompt, saved)
        if n_other > MIN_PROMPT:
            self.headkv.on_notice(
                f"{contents.path}: the chat template writes it otherwise here, {n_other} of {contents.n_rows} tokens "
                "are read again"
            )

    def answer(self, text: str) -> Generator[str, None, None]:
        """Send a message and stream the answer, piece by piece.

        Raises
        ------
        UsageError
            the conversation is longer than the context; nothing was evaluated
        NativeError
            the model could not be evaluated
        """
        self.messages.append(self._user_message(text))
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

    def _user_message(self, text: str) -> dict[str, str]:
        return {"role": "user", "content": "\n".join([*self.attachments, text])}

    def _stream(self) -> Generator[str, None, None]:
        llama: Any = self.headkv.llama
        watch = LoopWatch()
        self.headkv.stop_when = watch if self.stop_loops else None
        self.finish = None
        try:
            chunks = llama.create_completion(prompt=self._tokens(self.messages), **self.sampling.options())
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

    def _tokens(self, messages: list[dict[str, str]]) -> list[int]:
        if self.template:
            return self.template.prompt(messages).tokens
        return plain_prompt(self.headkv.llama, "\n".join(message["content"] for message in messages)).tokens

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
