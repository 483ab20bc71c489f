"""One model in one llama_context, with the logits of every token: what the end-to-end tests work on."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyheadkv.engine.llama import count_read
from pyheadkv.engine.llama import logits as computed_logits
from pyheadkv.engine.native import Native, context_cells
from pyheadkv.model.shape import CACHE_TYPES

Logits = npt.NDArray[np.float32]


class Context:
    """A `llama_cpp.Llama` and, when attached, its `Native`.

    Parameters
    ----------
    n_cells
        cells the cache starts with; 0 is n_ctx, as stock does
    attach
        prepare the context for compression
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = 512,
        n_batch: int = 512,
        n_ubatch: int = 512,
        n_threads: int = 1,
        cache_type: str = "f16",
        n_cells: int = 0,
        attach: bool = True,
        **options: Any,
    ) -> None:
        import llama_cpp

        cells = context_cells(n_cells) if n_cells else nullcontext()
        ggml_type = CACHE_TYPES[cache_type].ggml_type
        defaults: dict[str, Any] = {
            "n_ctx": n_ctx,
            "n_batch": n_batch,
            "n_ubatch": n_ubatch,
            "n_threads": n_threads,
            "n_threads_batch": n_threads,
            "type_k": ggml_type,
            "type_v": ggml_type,
            "flash_attn": True,
            "logits_all": True,
            "verbose": False,
        }
        with cells:
            self.llama: Any = llama_cpp.Llama(str(path), **(defaults | options))
        self._native = Native(self.llama) if attach else None

    @property
    def native(self) -> Native:
        """The attached side; only of an attached context."""
        assert self._native is not None, "this context was not attached"
        return self._native

    @property
    def n_pos(self) -> int:
        """Tokens evaluated."""
        return int(self.llama.n_tokens)

    def decode(self, tokens: Sequence[int]) -> Logits:
        """Evaluate the next tokens, in as many batches as n_batch asks for; logits f32 [n_tokens, n_vocab]."""
        first = self.n_pos
        self.llama.eval(list(map(int, tokens)))
        logits: Logits = self.llama.scores[first : self.n_pos].copy()
        return logits

    def decode_each(self, tokens: Sequence[int]) -> Logits:
        """Evaluate tokens one by one."""
        return np.concatenate([self.decode([token]) for token in tokens])

    def read(self, tokens: Sequence[int], **options: Any) -> None:
        """Read the next tokens layer by layer, as `Native.read` does."""
        self.native.read(tokens, **options)
        count_read(self.llama, tokens)

    def last_logits(self) -> Logits:
        """Logits of the last token, f32 [n_vocab]."""
        return computed_logits(self.llama).copy()

    def state(self) -> npt.NDArray[np.uint8]:
        """All cells, K and V as llama.cpp writes them; of a context that is not attached too."""
        from llama_cpp import llama_cpp as bindings

        context = self.llama._ctx.ctx
        state = np.empty(bindings.llama_state_seq_get_size(context, 0), dtype=np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        assert bindings.llama_state_seq_get_data(context, pointer, state.size, 0) == state.size
        return state

    def arm_and_decode(self, tokens: Sequence[int], n_obs: int) -> Logits:
        """Evaluate a prompt whose last n_obs tokens are the observation window."""
        split = len(tokens) - n_obs
        first = self.decode(tokens[:split])
        self.native.observe(n_obs)
        return np.concatenate([first, self.decode(tokens[split:])])

    def seq_rm(self, p0: int, p1: int = -1) -> bool:
        """llama_memory_seq_rm of sequence 0, without the bookkeeping of llama_cpp.Llama."""
        import llama_cpp

        return bool(llama_cpp.llama_memory_seq_rm(self.llama._ctx.memory, 0, p0, p1))

    def kept(self) -> list[list[npt.NDArray[np.int32]]]:
        """Prefix positions, [n_layer][n_head_kv]."""
        layers = self.native.layers()
        return [[self.native.positions(i, ih) for ih in range(layer.n_head_kv)] for i, layer in enumerate(layers)]

    def close(self) -> None:
        """Free context and model."""
        self.llama.close()


def relative_error(values: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Root mean square of the difference over that of the truth."""
    x, y = np.asarray(values, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    return float(np.sqrt(((x - y) ** 2).mean() / (y**2).mean()))


def make_tokens(n: int, n_vocab: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    tokens: list[int] = np.random.default_rng(seed).integers(0, n_vocab, n).tolist()
    return tokens


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def mean_kl(logits: Logits, truth: Logits) -> float:
    """Kullback-Leibler divergence of the next token's distribution, mean over tokens, nats."""
    p, q = _log_softmax(truth), _log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())
