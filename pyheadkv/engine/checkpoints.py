"""States that a conversation can go back to, where not all of a model's memory can be cut.

Rows of any position can be taken away. A recurrent state cannot be undone, and the rows that a sliding window forgot
are gone: of these, copies are kept at some positions. Going back is going to the last copy before, and reading on.

    position   0 ......... 900 ......... 960 ...... 1200 ...... 1260        cut to 1000: the copy of 960, 40 tokens more
               copies       ^             ^          ^
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyheadkv.engine.llama import context_of, cut, tokens_of

if TYPE_CHECKING:
    import llama_cpp

MAX_KEPT = 4
_SEQUENCE = 0


@dataclass(frozen=True)
class _Checkpoint:
    tokens: list[int]  # before it
    state: ctypes.Array[ctypes.c_uint8]


class Checkpoints:
    """Copies of what a model's memory has beside the rows that can be cut, the last `MAX_KEPT` of them.

    Parameters
    ----------
    llama
        the model
    are_needed
        it has something beside the rows; otherwise nothing is ever kept
    """

    def __init__(self, llama: llama_cpp.Llama, *, are_needed: bool) -> None:
        self._llama, self.are_needed = llama, are_needed
        self._kept: list[_Checkpoint] = []

    @property
    def n_bytes(self) -> int:
        """Host memory that the copies take."""
        return sum(len(one.state) for one in self._kept)

    def keep(self) -> None:
        """Copy the state behind the tokens that were read; nothing where it is not needed."""
        tokens = tokens_of(self._llama)
        if not self.are_needed or not tokens:
            return
        from llama_cpp import llama_cpp as bindings

        context, flags = context_of(self._llama), bindings.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        n_bytes = bindings.llama_state_seq_get_size_ext(context, _SEQUENCE, flags)
        state = (ctypes.c_uint8 * n_bytes)()
        if bindings.llama_state_seq_get_data_ext(context, state, n_bytes, _SEQUENCE, flags) != n_bytes:
            return  # without it more is read again
        others = [one for one in self._kept if len(one.tokens) != len(tokens)]
        self._kept = [*others, _Checkpoint(tokens, state)][-MAX_KEPT:]

    def forget(self) -> None:
        """Keep none."""
        self._kept.clear()

    def cut(self, n_tokens: int) -> int:
        """Keep the first tokens of a cache, or as many of them as can be; there are no logits until one is read.

        Returns
        -------
        tokens that are left
        """
        if cut(self._llama, n_tokens):
            return n_tokens
        tokens = tokens_of(self._llama)[:n_tokens]
        for one in sorted(self._kept, key=lambda one: len(one.tokens), reverse=True):
            n = len(one.tokens)
            if n <= n_tokens and one.tokens == tokens[:n] and self._restore(one) and cut(self._llama, n):
                return n
        cut(self._llama, 0)
        return 0

    def _restore(self, one: _Checkpoint) -> bool:
        from llama_cpp import llama_cpp as bindings

        flags = bindings.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        n = bindings.llama_state_seq_set_data_ext(context_of(self._llama), one.state, len(one.state), _SEQUENCE, flags)
        return bool(n == len(one.state))
