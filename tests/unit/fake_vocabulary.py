"""A vocabulary with llama.cpp's rules for special tokens and spaces, and a token for each other character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

UNKNOWN, CONTROL, USER_DEFINED = 1 << 0, 1 << 3, 1 << 4
NORMAL, LSTRIP, RSTRIP = 1 << 2, 1 << 7, 1 << 8
FIRST_CHAR = 1000


class FakeVocabulary:
    """Stands in for a Llama and for its `_model`, as far as prompts go.

    Parameters
    ----------
    special
        attributes of special tokens by their texts; the first is the token that begins a conversation, the second ends
        an answer
    adds_space
        whether text gets a space before it at the beginning and after special tokens, as SentencePiece does
    adds_bos
        whether llama.cpp's tools put the first token before a prompt
    """

    def __init__(
        self,
        special: Mapping[str, int],
        template: str | None = None,
        *,
        adds_space: bool = False,
        adds_bos: bool = False,
    ) -> None:
        self._special = list(special)
        self._attributes = list(special.values())
        self._adds_space = adds_space
        self._adds_bos = adds_bos
        self._model = self
        self.metadata = {} if template is None else {"tokenizer.chat_template": template}

    def token_bos(self) -> int:
        return 0

    def token_eos(self) -> int:
        return 1

    def add_bos_token(self) -> bool:
        return self._adds_bos

    def vocab_type(self) -> int:
        return 1

    def token_get_text(self, token: int) -> str:
        return chr(token - FIRST_CHAR) if token >= FIRST_CHAR else self._special[token]

    def token_get_attr(self, token: int) -> int:
        return NORMAL if token >= FIRST_CHAR else self._attributes[token]

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        parts: list[str | int] = [text.decode()]
        for words in sorted(self._special, key=len, reverse=True):
            token = self._special.index(words)
            if special or self._attributes[token] & USER_DEFINED:
                parts = [new for part in parts for new in self._partition(part, words, token)]
        tokens = [0] if add_bos and self._adds_bos else []
        is_after_special = True
        for part in parts:
            if isinstance(part, int):
                tokens.append(part)
            elif part:
                begin = " " if self._adds_space and is_after_special else ""
                tokens += [ord(char) + FIRST_CHAR for char in begin + part]
            is_after_special = isinstance(part, int)
        return tokens

    def _partition(self, part: str | int, words: str, token: int) -> Sequence[str | int]:
        if isinstance(part, int) or words not in part:
            return [part]
        left, right = part.split(words, 1)
        left = left.rstrip() if self._attributes[token] & LSTRIP else left
        right = right.lstrip() if self._attributes[token] & RSTRIP else right
        rest = self._partition(right, words, token) if right else []
        return [*([left] if left else []), token, *rest]

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes:
        is_shown = {token: special or token >= FIRST_CHAR or self._attributes[token] & USER_DEFINED for token in tokens}
        return "".join(self.token_get_text(token) for token in tokens if is_shown[token]).encode()
