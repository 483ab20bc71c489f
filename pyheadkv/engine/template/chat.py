"""From messages to tokens, by a chat template.

    messages --lift--> template --> "<|im_start|>user\\n" + lifted text + "<|im_end|>\\n<|im_start|>assistant\\n"
                                      control token   \\_________________/  control token   ...
                                                     one stretch of text

Control tokens are looked for in what the template wrote; the stretches between them, the template's own words and the
messages together, are tokenized as text. So tokens over the seams are those that llama.cpp's tokenizer makes of the
whole, and control tokens within messages stay words.

A template may look into messages, for "</think>" above all. The strings that it looks for stay as they are where they
hold no special token, in answers of the model where they hold no control token. Whether it did the same with lifted
messages as with the real ones is checked: if not, the real rendering is taken where no message holds a special token,
and else the lifted one, with a notice.

What llama.cpp calls user defined tokens it finds in every text. Those that the template itself writes are cut in two
where people write them (after the first character; a tokenizer that puts a space before text puts one there too).

A template whose marks are no tokens but words, as "[INST]" of Llama 2, cannot be told from a message that says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pyheadkv.engine.llama import adds_bos, token_text, vocabulary_of
from pyheadkv.engine.template.lift import Plane, free_plane
from pyheadkv.engine.template.render import Messages, make_renderer
from pyheadkv.engine.template.special import Special, SpecialTokens
from pyheadkv.errors import HeadKVError, ModelError, UsageError

if TYPE_CHECKING:
    import llama_cpp

MODELS_OWN = "chat_template.default"  # llama-cpp-python's name for the template of the file
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)  # roles, kinds of content, keys: a template compares them
_MODEL = ("assistant", "model")
_SPOKEN = ("content", "reasoning_content", "thinking")
_BLANKS = " \t\n\v\f\r"  # C's isspace
_LOOKS_INSIDE = "the chat template looks into messages that hold its special tokens: it sees them as plain text"


@dataclass(frozen=True)
class ChatPrompt:
    """Input of the model: tokens, and the text that they stand for, but for the first `n_added` of them."""

    text: str
    tokens: list[int]
    n_added: int = 0


def template_source(llama: llama_cpp.Llama) -> str | None:
    """The model's chat template, in Jinja or the name of one that llama.cpp has; None where it has none."""
    source: str | None = llama.metadata.get("tokenizer.chat_template")
    return source


def set_template(llama: llama_cpp.Llama, source: str) -> None:
    """Give a model another chat template than its file has, in Jinja or the name of one that llama.cpp has."""
    llama.metadata["tokenizer.chat_template"] = source
    llama.chat_format = MODELS_OWN


def check_template(source: str) -> None:
    """Refuse with a ModelError what is no chat template, before a model is loaded."""
    make_renderer(source, bos="", eos="")


def plain_prompt(llama: llama_cpp.Llama, text: str) -> ChatPrompt:
    """A text that is continued as it is, without control tokens but the vocabulary's first one."""
    return _begun(llama, text, vocabulary_of(llama).tokenize(text.encode(), add_bos=False, special=False))


class ChatTemplate:
    """Writes conversations in the way of a model, for `Llama.create_completion` and `HeadKV`.

    >>> template = ChatTemplate(llama)
    >>> tokens = template.prompt([{"role": "user", "content": "Who are you?"}]).tokens
    >>> answer = llama.create_completion(tokens, max_tokens=None)

    Parameters
    ----------
    llama
        the model, with a chat template
    on_notice
        called with one line, once, where the template must see messages otherwise than they are

    Raises
    ------
    ModelError
        there is no template, or it cannot be used; says why and what to do
    """

    def __init__(self, llama: llama_cpp.Llama, on_notice: Callable[[str], None] = lambda line: None) -> None:
        source = template_source(llama)
        if source is None:
            raise ModelError("this model has no chat template: load(chat_template=) gives it one")
        self._llama = llama
        self._notify: Callable[[str], None] | None = on_notice
        self._special = SpecialTokens(llama)
        self._render = make_renderer(source, token_text(llama, llama.token_bos()), token_text(llama, llama.token_eos()))
        looked_for = sorted(filter(str.strip, self._render.looked_for))
        own_words = sorted(self._own_words())
        self._own_word = re.compile(f"(?=({_any_of(own_words)}))") if own_words else None
        self._kept = _any_of(text for text in looked_for if not self._special.find(text))
        self._kept_of_model = _any_of([*(t for t in looked_for if not self._special.has_control(t)), *own_words])

    def prompt(self, messages: Messages, answer: str = "", **variables: Any) -> ChatPrompt:
        """Messages, and the beginning of the answer.

        Parameters
        ----------
        messages
            as OpenAI's API has them; texts, names, tool calls and results may hold anything
        answer
            put into the model's mouth
        variables
            more for the template: tools, documents, enable_thinking and so on

        Raises
        ------
        UsageError
            the template refuses the messages
        ModelError
            the template fails
        """
        plane = free_plane(_texts_in([messages, answer, variables, list(self._render.literals)]))
        lifted = self._lifted(messages, variables, plane) + plane.lift(answer)
        return _begun(self._llama, plane.lower(lifted), self._tokens(lifted, plane))

    def between(self) -> list[int]:
        """Tokens of what the template writes between a user's message and the answer."""
        plane = free_plane(self._render.literals)
        mark = plane.lift("message")
        text = self._render([{"role": "user", "content": mark}], {})
        return self._tokens(text.rpartition(mark)[2], plane)

    # ---- rendering ----

    def _lifted(self, messages: Messages, variables: Mapping[str, Any], plane: Plane) -> str:
        """The rendering in which all that is not the template's is lifted, or safe as it is."""
        real = self._render(messages, variables)
        lift = partial(self._lift, plane)
        hidden = [
            {
                lift(key, ""): lift(value, self._kept_of_model if _is_spoken(message, key) else self._kept)
                for key, value in message.items()
            }
            for message in messages
        ]
        try:
            lifted = self._render(hidden, lift(variables, self._kept))
        except HeadKVError:
            lifted = None
        if lifted is not None and plane.lower(lifted) == real:
            return lifted
        if not self._hold_special(messages, variables) and (lifted is None or self._same_control(real, lifted, plane)):
            return real
        if lifted is None:
            raise UsageError("the messages hold special tokens, and the chat template refuses them as plain text")
        if self._notify:
            self._notify(_LOOKS_INSIDE)
            self._notify = None
        return lifted

    def _lift(self, plane: Plane, value: Any, kept: str) -> Any:
        """A value of any kind with its texts lifted; names stay, and what matches `kept` where it forms no token."""
        if isinstance(value, Mapping):
            return {self._lift(plane, key, kept): self._lift(plane, item, kept) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._lift(plane, item, kept) for item in value]
        if not isinstance(value, str) or (_NAME.fullmatch(value) and not self._special.find(value)):
            return value
        if not kept:
            return plane.lift(value)
        parts = re.split(f"({kept})", value)
        lifted = "".join(part if i % 2 else plane.lift(part) for i, part in enumerate(parts))
        if any(self._special.has_control(run) for _, run in plane.runs(lifted)):
            return plane.lift(value)
        return lifted

    def _hold_special(self, messages: Messages, variables: Mapping[str, Any]) -> bool:
        """Whether people wrote a special token of the template, or the model a control token."""
        if any(map(self._special.has_control, _texts_in([messages, variables]))):
            return True
        others = [value for message in messages for key, value in message.items() if not _is_spoken(message, key)]
        return self._own_word is not None and any(map(self._own_word.search, _texts_in([others, variables])))

    def _same_control(self, real: str, lifted: str, plane: Plane) -> bool:
        tokens = [special.token for special in self._special.find(real) if special.is_control]
        return tokens == [special.token for special in self._control(lifted, plane)]

    # ---- tokens ----

    def _own_words(self) -> set[str]:
        """User defined tokens that the template writes itself, but for blanks and single characters."""
        found = set()
        for text in self._render.literals:
            words = (text[word.start : word.end] for word in self._special.find(text) if not word.is_control)
            found |= {word for word in words if len(word) > 1 and not word.isspace()}
        return found

    def _control(self, lifted: str, plane: Plane) -> Iterator[Special]:
        """Control tokens that the template wrote."""
        for start, run in plane.runs(lifted):
            for special in self._special.find(run):
                if special.is_control:
                    yield special.moved(start)

    def _tokens(self, lifted: str, plane: Plane) -> list[int]:
        tokens: list[int] = []
        at, strips = 0, False
        for special in self._control(lifted, plane):
            tokens += self._stretch(lifted[at : special.start], plane, strips, special.strips_left)
            tokens.append(special.token)
            at, strips = special.end, special.strips_right
        return tokens + self._stretch(lifted[at:], plane, strips, False)

    def _stretch(self, lifted: str, plane: Plane, strips_left: bool, strips_right: bool) -> list[int]:
        """Tokens of what stands between two control tokens, some of which swallow white space beside them."""
        lifted = lifted.lstrip(_BLANKS) if strips_left else lifted
        lifted = lifted.rstrip(_BLANKS) if strips_right else lifted
        text = plane.lower(lifted)
        cuts = [0, *self._cuts(lifted, text), len(text)]
        pieces = (text[a:b] for a, b in pairwise(cuts) if a < b)
        return [token for piece in pieces for token in self._special.tokenize(piece)]

    def _cuts(self, lifted: str, text: str) -> Iterator[int]:
        """Where the template's user defined tokens are cut in two, since a message has a part in them."""
        for word in self._own_word.finditer(text) if self._own_word else ():
            start, end = word.span(1)
            if lifted[start:end] != text[start:end]:
                yield start + 1


def _begun(llama: llama_cpp.Llama, text: str, tokens: list[int]) -> ChatPrompt:
    """A prompt with the vocabulary's first token before it, where there should be one and no template wrote it."""
    bos = llama.token_bos()
    is_missing = bos >= 0 and tokens[:1] != [bos] and adds_bos(llama)
    return ChatPrompt(text, [bos] * is_missing + tokens, int(is_missing))


def _is_spoken(message: Mapping[str, Any], key: str) -> bool:
    """Whether the model itself wrote what stands there, token by token."""
    return message.get("role") in _MODEL and key in _SPOKEN


def _any_of(texts: Iterable[str]) -> str:
    """Pattern of any of the texts, the longest first; "" for none."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))


def _texts_in(value: Any) -> Iterator[str]:
    """All strings inside lists and mappings, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts_in(key)
            yield from _texts_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts_in(item)
