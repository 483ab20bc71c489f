"""Special tokens of a vocabulary, and where a text has them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from pyheadkv.engine.llama import vocabulary_of

if TYPE_CHECKING:
    import llama_cpp

# enum llama_token_attr
_UNKNOWN, _CONTROL, _USER_DEFINED = 1 << 0, 1 << 3, 1 << 4
_LSTRIP, _RSTRIP = 1 << 7, 1 << 8
_N_TEXTS, _SHORT = 4096, 256  # a template writes the same few short pieces again in each turn


@dataclass(frozen=True)
class Special:
    """A special token that a text has, in characters [start, end).

    `is_control` is false for what llama.cpp calls user defined: such tokens are found in any text, whether special
    tokens are asked for or not. `strips_left` and `strips_right` say that the tokenizer drops white space beside it.
    """

    token: int
    start: int
    end: int
    is_control: bool
    strips_left: bool
    strips_right: bool

    def moved(self, n_chars: int) -> Special:
        """The same token, further on in a longer text."""
        return replace(self, start=self.start + n_chars, end=self.end + n_chars)


class SpecialTokens:
    """Finds the special tokens of a Llama's vocabulary in texts."""

    def __init__(self, llama: llama_cpp.Llama) -> None:
        self._model = vocabulary_of(llama)
        self._attributes = lru_cache(None)(self._model.token_get_attr)
        self._find_again = lru_cache(_N_TEXTS)(self._find)

    def find(self, text: str) -> tuple[Special, ...]:
        """All special tokens that llama.cpp's tokenizer finds in the text, in order."""
        return self._find_again(text) if len(text) <= _SHORT else self._find(text)

    def has_control(self, text: str) -> bool:
        """Whether a text has a token that only a template may write."""
        return any(special.is_control for special in self.find(text))

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text in which control tokens are nothing but text."""
        tokens: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=False)
        return tokens

    def _find(self, text: str) -> tuple[Special, ...]:
        found, at = [], 0
        for token in self._model.tokenize(text.encode(), add_bos=False, special=True):
            attributes = self._attributes(token)
            if not attributes & (_CONTROL | _UNKNOWN | _USER_DEFINED):
                continue
            words = self._model.token_get_text(token)
            start = text.find(words, at)
            if start < 0:  # a character that no token stands for
                continue
            at = start + len(words)
            is_control = not attributes & _USER_DEFINED
            found.append(Special(token, start, at, is_control, bool(attributes & _LSTRIP), bool(attributes & _RSTRIP)))
        return tuple(found)
