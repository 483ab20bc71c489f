"""The model that answers: prompts, questions and answers of one HeadKV.

Conversations are told apart by their tokens: `Llama.generate` goes on where a prompt begins with what is in the cache,
as far as HeadKV lets it, and reads the rest. One conversation is in the cache at a time, `Conversations` has the
others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyheadkv.chat.sampling import Sampling
from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.grammar import schema_grammar
from pyheadkv.engine.llama import adds_bos, context_length
from pyheadkv.engine.template import ChatTemplate, template_source
from pyheadkv.files.plain_text import BYTES_PER_TOKEN
from pyheadkv.server.answer import Answer, Question
from pyheadkv.server.conversations import Conversations
from pyheadkv.server.errors import ApiError
from pyheadkv.server.memory import MemoryLimit
from pyheadkv.server.requests import ChatRequest, CompletionRequest, template_messages
from pyheadkv.server.tools import answer_schema, template_tools

TOO_LONG = "context_length_exceeded"


class Model:
    """One model, and the settings of its answers where a request has none.

    Questions may be made on any thread, answers on one alone.

    Parameters
    ----------
    headkv
        wraps the loaded Llama
    name
        that clients know it by
    sampling
        settings of answers
    stop_loops
        end answers that say the same over and over
    conversations
        where those are that are not in the cache; by default they are gone
    limit
        of memory; answers that reach it end

    Raises
    ------
    ModelError
        its chat template cannot be used
    """

    def __init__(
        self,
        headkv: HeadKV,
        name: str,
        sampling: Sampling,
        *,
        stop_loops: bool = True,
        conversations: Conversations | None = None,
        limit: MemoryLimit | None = None,
    ) -> None:
        self.headkv, self.name, self.conversations = headkv, name, conversations
        self._limit = limit
        self.n_ctx = context_length(headkv.llama)
        self._llama: Any = headkv.llama
        self._sampling, self._stop_loops = sampling, stop_loops
        has_template = template_source(headkv.llama) is not None
        self._template = ChatTemplate(headkv.llama, headkv.on_notice) if has_template else None

    def ask_chat(self, request: ChatRequest) -> Question:
        """The question of a conversation.

        Raises
        ------
        HeadKVError
            it has no room, the template refuses it, or a setting cannot be followed
        """
        if self._template is None:
            raise ApiError("this model has no chat template: serve --chat-template gives it one")
        self._check_size(sum(map(len, request.texts())))
        tools = template_tools(request)
        variables: dict[str, Any] = {"tools": tools} if tools else {}
        tokens = self._template.prompt(template_messages(request.messages), **variables).tokens
        schema = answer_schema(request)
        return self._question(
            tokens, request, grammar=None if schema is None else schema_grammar(self.headkv.llama, schema)
        )

    def ask_text(self, request: CompletionRequest) -> Question:
        """The question of a text that is continued; as `ask_chat`."""
        return self._question(self._text_tokens(request.prompt), request)

    def answer(
        self, question: Question, is_cancelled: Callable[[], bool], on_progress: Callable[[int, int], None]
    ) -> Answer:
        """The answer; nothing is read before its pieces are asked for. `keep` is to be called behind it."""
        if self.conversations:
            self.conversations.take(question.tokens)
        if self._limit:
            is_cancelled = self._limit.ending(is_cancelled)
        return Answer(self.headkv, question, is_cancelled, stop_loops=self._stop_loops, on_progress=on_progress)

    def check_memory(self) -> None:
        """Refuse an answer that was ended for it.

        Raises
        ------
        ApiError
            the limit was reached
        """
        if self._limit and self._limit.was_reached:
            raise self._limit.error()

    def keep(self, question: Question) -> None:
        """Save what was read for a question, as far as conversations are saved, and free what was too much."""
        if self.conversations:
            self.conversations.keep(len(question.tokens))
        if self._limit and self._limit.was_reached:
            self.headkv.clear()
            if self.conversations:
                self.conversations.forget()

    def _check_size(self, n_chars: int) -> None:
        """Refuse what cannot fit before it is made into tokens, which takes seconds where it is long."""
        if n_chars > self.n_ctx * BYTES_PER_TOKEN:
            raise ApiError(
                f"the prompt has {n_chars} characters, no text of more than {self.n_ctx * BYTES_PER_TOKEN} "
                f"fits into the context of {self.n_ctx} tokens",
                code=TOO_LONG,
            )

    def _question(self, tokens: list[int], request: ChatRequest | CompletionRequest, **more: Any) -> Question:
        if len(tokens) >= self.n_ctx:
            raise ApiError(
                f"the prompt has {len(tokens)} tokens, and the context of {self.n_ctx} must have room for an answer",
                code=TOO_LONG,
            )
        return Question(
            tokens,
            self._sampling.having(request.settings()),
            stop=request.stop_words(),
            n_top=request.n_top,
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            **more,
        )

    def _text_tokens(self, prompt: str | list[int] | list[str]) -> list[int]:
        """As `Llama.create_completion` reads a text; tokens are taken as they are."""
        (first, *_) = prompt if isinstance(prompt, list) else (prompt,)
        if isinstance(first, str):
            self._check_size(len(first))
            begin = [self._llama.token_bos()] if adds_bos(self._llama) else []
            tokens: list[int] = begin + self._llama.tokenize(first.encode(), add_bos=False, special=True)
        else:
            tokens = [token for token in prompt if isinstance(token, int)]
            if too_high := [token for token in tokens if token >= self._llama.n_vocab()]:
                n_vocab = self._llama.n_vocab()
                raise ApiError(f"token {too_high[0]} is none of the vocabulary's {n_vocab}", param="prompt")
        if not tokens:
            raise ApiError("the prompt is empty", param="prompt")
        return tokens
