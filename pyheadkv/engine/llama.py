"""A Llama and its native side: tokens are read, taken back and forgotten here, for the session and for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyheadkv.engine.abi import STATUS_COMPUTE
from pyheadkv.engine.interrupt import interruptible
from pyheadkv.engine.native import Native
from pyheadkv.errors import NativeError, UsageError

if TYPE_CHECKING:
    import llama_cpp


def context_length(llama: llama_cpp.Llama) -> int:
    """Tokens that a context has room for: as many as were asked for, where ``llama.n_ctx()`` is rounded up."""
    return len(llama.input_ids)


def cut_back(llama: llama_cpp.Llama, n_tokens: int) -> None:
    """Keep the first tokens of a cache, at least those of a compressed prefix; there are no logits until one is read.

    At once: the next eval would cut there too, but what observes asks for cells before that.
    """
    llama._ctx.kv_cache_seq_rm(-1, n_tokens, -1)
    llama.n_tokens = n_tokens


class Reader:
    """Reads tokens on the Llama of the caller, whose conversation is lost.

    Parameters
    ----------
    llama
        with flash attention, best made by `pyheadkv.load`

    Raises
    ------
    ModelError
        the model's cache cannot be compressed
    UsageError
        a HeadKV is on this Llama
    """

    def __init__(self, llama: llama_cpp.Llama) -> None:
        if "eval" in vars(llama):
            raise UsageError("this Llama has a HeadKV: close that one before measuring")
        self.llama = llama
        self.native = Native(llama)

    def forget(self) -> None:
        """Empty the cache and give its memory back; observe nothing any more."""
        self.llama.reset()  # type: ignore[no-untyped-call]
        self.llama._ctx.kv_cache_seq_rm(-1, 0, -1)
        self.native.score_arm(0)

    def go_on(self, tokens: Sequence[int]) -> None:
        """Read tokens after those that are there.

        Raises
        ------
        NativeError
            they cannot be decoded
        """
        try:
            if tokens:
                with interruptible(self.native) if len(tokens) > 1 else nullcontext():
                    self.llama.eval(tokens)
        except RuntimeError as error:
            raise NativeError(f"{error} after position {self.llama.n_tokens}", STATUS_COMPUTE) from error

    def go_back(self, n_tokens: int) -> None:
        """Forget the last tokens, none of them in a compressed prefix; there are no logits until one is read."""
        cut_back(self.llama, self.llama.n_tokens - n_tokens)

    def logits(self) -> npt.NDArray[np.float32]:
        """Of the token after the last one, f32 [n_vocab]; good until the next token is read."""
        return np.ctypeslib.as_array(self.llama._ctx.get_logits_ith(-1), shape=(self.llama.n_vocab(),))
