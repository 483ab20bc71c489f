"""The model `pyheadkv` of llm, the command and library of that name: `llm -m pyheadkv -o budget 10% QUESTION`.

llm finds it by the entry point in pyproject.toml and imports it at each of its starts, so the model side is imported
when something is asked. A loaded model stays until another is asked for: turns of `llm chat` go on in its cache.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import llm
from llm.parts import Message, TextPart
from pydantic import Field

from pyheadkv.errors import UsageError
from pyheadkv.model.shape import MAX_CTX

if TYPE_CHECKING:
    from pyheadkv.capsule.reader import Contents
    from pyheadkv.chat.conversation import Conversation

_OPENING = (
    "gguf",
    "memory",
    "budget",
    "policy",
    "n_ctx",
    "n_threads",
    "n_gpu_layers",
)  # options that a loaded model depends on
_SAMPLING = ("temp", "n_predict", "seed")


class HeadKVOptions(llm.Model.Options):
    """What `-o NAME VALUE` takes; `llm models options set pyheadkv NAME VALUE` makes a value the default."""

    gguf: str = Field("demo", description="GGUF file, demo, or user/repo[:quant]")
    memory: str | None = Field(None, description="File of pyheadkv ingest to begin with; nothing of it is read again")
    budget: str | None = Field(None, description="Rows to keep: 10%, 512, 64MiB, full; else the profile's, or 25%")
    policy: str = Field("auto", description="What to keep, with settings; pyheadkv policies lists them")
    n_ctx: int = Field(0, ge=0, le=MAX_CTX, description="Context in tokens; 0 is the model's own")
    n_threads: int | None = Field(None, ge=1, description="All CPUs if not given")
    n_gpu_layers: int = Field(0, ge=-1, description="On the GPU; -1 is all")
    temp: float | None = Field(None, description="0 always takes the likeliest token")
    n_predict: int | None = Field(None, description="Tokens of an answer")
    seed: int | None = Field(None, description="-1 is random")


class HeadKVModel(llm.Model):
    """One loaded model at a time, whatever its file."""

    model_id = "pyheadkv"
    can_stream = True
    Options = HeadKVOptions  # type: ignore[assignment]

    def __init__(self) -> None:
        self._wanted: tuple[Any, ...] | None = None
        self._conversation: Conversation | None = None
        self._memory: Contents | None = None  # that it begins with
        self._open = ExitStack()  # the loaded model
        atexit.register(lambda: self._open.close())

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None = None
    ) -> Iterator[str]:
        """Answer the last message of a conversation.

        Raises
        ------
        HeadKVError
            the model cannot be loaded or compressed, or the options do not fit it
        """
        options = prompt.options
        assert isinstance(options, HeadKVOptions)
        messages = [{"role": message.role, "content": _text_of(message)} for message in prompt.messages]
        if not messages or messages[-1]["role"] != "user":
            raise UsageError("there is no message to answer")
        talk = self._talk(options)
        if self._memory:
            messages = _behind(self._memory, messages)
        if talk.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": talk.system})
        given = {name.replace("_", "-"): getattr(options, name) for name in _SAMPLING}
        sampling = talk.sampling
        talk.sampling = sampling.having({name: value for name, value in given.items() if value is not None})
        talk.messages = messages[:-1]
        try:
            with closing(talk.answer(messages[-1]["content"])) as pieces:
                yield from pieces
        finally:
            talk.sampling = sampling  # of the model
        stats = talk.headkv.stats()
        response.set_usage(input=stats.n_prompt, output=stats.n_generated)
        response.response_json = talk.headkv.report()

    def _talk(self, options: HeadKVOptions) -> Conversation:
        """The conversation of the model that is asked for, loaded unless it is there."""
        wanted = tuple(getattr(options, name) for name in _OPENING)
        if self._conversation is None or self._wanted != wanted:
            self._conversation = None
            self._open.close()
            with ExitStack() as stack:
                self._conversation = talk = _open(options, stack)
                self._memory = talk.load(options.memory, is_shared=True) if options.memory else None
                talk.attachments = []  # they stand in the first message, which llm has
                self._open, self._wanted = stack.pop_all(), wanted
        return self._conversation


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Called by llm at its start."""
    register(HeadKVModel())


def _open(options: HeadKVOptions, stack: ExitStack) -> Conversation:
    """A conversation on a model that is loaded until the stack is closed."""
    from pyheadkv.chat import demo
    from pyheadkv.chat.conversation import Conversation
    from pyheadkv.chat.session import HeadKV
    from pyheadkv.engine.load import opened
    from pyheadkv.engine.sources import resolve_model

    path = resolve_model(options.gguf, _note)
    sizes: dict[str, Any] = {name: getattr(options, name) for name in ("n_ctx", "n_threads", "n_gpu_layers")}
    llama = stack.enter_context(opened(path, **sizes, on_notice=_note))
    headkv = stack.enter_context(HeadKV(llama, policy=options.policy, budget=options.budget, on_notice=_note))
    return Conversation(headkv, demo.SYSTEM if demo.is_demo(path) else None, demo.sampling_of(llama, _note))


def _behind(memory: Contents, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Messages of a chat that begins with a file, whose texts stand before the first of them."""
    first, *others = messages
    if first["role"] == "system":
        raise UsageError("a system prompt does not go with memory, whose own was read before it: ingest -sys")
    return [*memory.messages, {**first, "content": "\n".join([*memory.attachments, first["content"]])}, *others]


def _text_of(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))


def _note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)
