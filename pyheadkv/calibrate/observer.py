"""A model that is watched while it reads: what each query head attends to, taken from the native score path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyheadkv.cache.prefill import Prefill
from pyheadkv.cache.select import attention_of
from pyheadkv.engine.beginning import n_same
from pyheadkv.engine.llama import context_length, tokens_of
from pyheadkv.errors import CalibrationError

if TYPE_CHECKING:
    import llama_cpp

Attention = list[npt.NDArray[np.float32]]

# ggml's CPU flash attention works in tiles of this many tokens; a batch that does not fill one goes token by token:
# 63 tokens after 1,800 others took 5 times as long as 64
TILE = 64


class Observer(Prefill):
    """A `Prefill` that keeps what it has in the cache from the last time, and tells what tokens attended to."""

    def __init__(self, llama: llama_cpp.Llama) -> None:
        super().__init__(llama)
        layers = self.native.layers()
        self.n_head = [layer.n_head for layer in layers]
        self.n_head_kv = [layer.n_head_kv for layer in layers]
        self.forget()

    def read_only(self, tokens: Sequence[int]) -> None:
        """Have exactly these tokens in the cache; those at the front that are there already are not read again.

        A few of them are, where that makes a whole tile.
        """
        self._check_room(len(tokens))
        n_kept = n_same(tokens, tokens_of(self.llama))
        if n_kept < len(tokens):
            n_kept = max(0, min(n_kept, len(tokens) - TILE))
        n_kept = self.checkpoints.cut(n_kept)
        self.native.observe(0)
        self.native.reserve(max(1, len(tokens)))
        self.read(tokens[n_kept:])
        self.checkpoints.keep()

    def observe(self, tokens: Sequence[int], reduce: str = "mean") -> Attention:
        """Read tokens and return what they attended to before them.

        Parameters
        ----------
        reduce
            over the tokens: "mean" or "max"

        Returns
        -------
        for each layer with a cache, f32 [n_head, positions before the tokens]
        """
        self._check_room(self.llama.n_tokens + len(tokens))
        return attention_of(self.native, self.read, tokens, reduce)

    def likeliest(self) -> int:
        """The token that the model would go on with."""
        return int(self.logits().argmax())

    def _check_room(self, n_pos: int) -> None:
        n_ctx = context_length(self.llama)
        if n_pos > n_ctx:
            raise CalibrationError(f"a prompt of {n_pos} tokens does not fit into the context of {n_ctx}")
