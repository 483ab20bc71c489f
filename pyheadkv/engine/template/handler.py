"""Llama.create_chat_completion with the tokens of a ChatTemplate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from pyheadkv.engine.template.chat import MODELS_OWN, ChatTemplate, template_source

if TYPE_CHECKING:
    import llama_cpp


class _ChatHandler:
    """A chat handler of llama-cpp-python: its own, but for the prompt and for stop words, which are EOG tokens here."""

    def __init__(self, on_notice: Callable[[str], None]) -> None:
        self._notify = on_notice
        self._template: ChatTemplate | None = None

    def __call__(self, *, llama: llama_cpp.Llama, **options: Any) -> Any:
        from llama_cpp.llama_chat_format import ChatFormatterResponse, chat_formatter_to_chat_completion_handler

        template = self._template = self._template or ChatTemplate(llama, self._notify)
        stand_in: Any = _WithPrompt(llama)

        def write(*, messages: Any, **variables: Any) -> Any:
            stand_in.tokens = template.prompt(messages, **variables).tokens
            return ChatFormatterResponse(prompt="", added_special=True)

        return chat_formatter_to_chat_completion_handler(write)(llama=stand_in, **options)


class _WithPrompt:
    """A Llama that has tokenized its prompt already."""

    def __init__(self, llama: llama_cpp.Llama) -> None:
        self._llama = llama
        self.tokens: list[int] = []

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        return self.tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, name)


def protect_chat_completion(llama: llama_cpp.Llama, on_notice: Callable[[str], None]) -> Callable[[], None]:
    """Have create_chat_completion write special tokens where the model's chat template does, and nowhere else.

    A Llama with a chat_format or chat_handler of the caller's own is left alone, as is one without a template.

    Returns
    -------
    a function that undoes it
    """
    if template_source(llama) is None or llama.chat_handler is not None or not _follows_model(llama):
        return lambda: None
    handler = llama.chat_handler = _ChatHandler(on_notice)

    def undo() -> None:
        if llama.chat_handler is handler:
            llama.chat_handler = None

    return undo


def _follows_model(llama: llama_cpp.Llama) -> bool:
    """Whether a Llama chats by the model's template, or by one of llama-cpp-python's that has the same text."""
    from llama_cpp.llama_chat_format import guess_chat_format_from_gguf_metadata

    return llama.chat_format in (MODELS_OWN, guess_chat_format_from_gguf_metadata(llama.metadata))


@contextmanager
def deferred_compilation() -> Iterator[None]:
    """A Llama made inside compiles its chat templates when it is asked to chat, not at once: one may be broken."""
    from llama_cpp import llama_chat_format

    class Deferred(llama_chat_format.Jinja2ChatFormatter):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._arguments = args, options

        def __call__(self, **options: Any) -> Any:
            args, own = self._arguments
            super().__init__(*args, **own)
            return super().__call__(**options)

    with patch.object(llama_chat_format, "Jinja2ChatFormatter", Deferred):
        yield
