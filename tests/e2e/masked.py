"""The oracle of a ragged prefix, for any model: an unattached context that attends to every row, some of them masked.

Flash attention is off, so that llama.cpp makes the probabilities of each layer as one matrix. Of those, what a head
did not keep is taken out, and the others are what they would have been without it:

    p' = p * kept / (1 - sum(p * (1 - kept)))       the share of an attention sink is in the 1
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from pyheadkv.engine.native import Native
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.keys import layer_count
from pyheadkv.model.layers import has_window
from tests.e2e.context import Context, Logits

NODE = "kq_soft_max-"
READING = ("gemma3n", "gemma4")  # architectures whose last layers may attend to the rows of another one

Kept = Mapping[int, list[npt.NDArray[np.int64]]]  # layer in the model -> positions of each KV head


class Masked:
    """Rows that are kept, from the moment on that `is_on` is set.

    Parameters
    ----------
    kept
        of layers whose rows some heads did not keep; others attend to all rows
    n_prefix
        positions before this one are masked where they are not kept
    """

    def __init__(self, kept: Kept, n_prefix: int) -> None:
        import llama_cpp.llama_cpp as bindings

        self._lib = bindings._lib
        for name, result in (("ggml_get_name", ctypes.c_char_p), ("ggml_get_data", ctypes.c_void_p)):
            getattr(self._lib, name).restype = result
        for name in ("ggml_nelements", "ggml_nrows"):
            getattr(self._lib, name).restype = ctypes.c_int64
        self._gone = {il: self._not_kept(heads, n_prefix) for il, heads in kept.items()}
        self.is_on, self.n_masked = False, 0
        self.callback = bindings.ggml_backend_sched_eval_callback(self._on_node)

    @staticmethod
    def _not_kept(heads: list[npt.NDArray[np.int64]], n_prefix: int) -> npt.NDArray[np.bool_]:
        gone = np.ones((len(heads), n_prefix), dtype=bool)
        for ih, positions in enumerate(heads):
            gone[ih, positions] = False
        return gone

    def _on_node(self, tensor: int, is_asked: bool, _: object) -> bool:
        node = ctypes.c_void_p(tensor)
        name = self._lib.ggml_get_name(node).decode()
        il = int(name.removeprefix(NODE)) if name.startswith(NODE) else -1
        if not self.is_on or il not in self._gone:
            return not is_asked
        if not is_asked:
            self._mask(node, self._gone[il])
            self.n_masked += 1
        return True

    def _mask(self, node: ctypes.c_void_p, gone: npt.NDArray[np.bool_]) -> None:
        n_all, n_rows = self._lib.ggml_nelements(node), self._lib.ggml_nrows(node)
        buffer = (ctypes.c_float * n_all).from_address(self._lib.ggml_get_data(node))
        n_heads, n_prefix = gone.shape
        # a KV head's query heads follow one another, each with all tokens
        p = np.frombuffer(buffer, dtype=np.float32).reshape(n_heads, n_rows // n_heads, n_all // n_rows)
        taken = np.where(gone[:, None, :], p[:, :, :n_prefix], 0).sum(axis=2, keepdims=True, dtype=np.float64)
        p[:, :, :n_prefix][np.broadcast_to(gone[:, None, :], p[:, :, :n_prefix].shape)] = 0
        p /= 1 - taken


@contextmanager
def _evaluated_with(callback: Any) -> Iterator[None]:
    """Contexts made in here call this at each node."""
    import llama_cpp.llama_cpp as bindings

    params = bindings.llama_context_default_params()
    params.cb_eval = callback
    with mock.patch.object(bindings, "llama_context_default_params", return_value=params):
        yield


def random_kept(native: Native, n_prefix: int, seed: int = 0) -> dict[int, list[npt.NDArray[np.int64]]]:
    """For each layer and KV head some positions, at most a fifth of them."""
    rng = np.random.default_rng(seed)
    return {
        layer.il: [
            np.sort(rng.choice(n_prefix, n, replace=False)) for n in rng.integers(0, n_prefix // 5, layer.n_head_kv)
        ]
        for layer in native.layers()
    }


def _of_readers(path: Path, kept: Kept) -> dict[int, list[npt.NDArray[np.int64]]]:
    """Layers behind the last one with rows of its own that attend to its rows."""
    metadata = read_gguf_metadata(path)
    arch, last = str(metadata["general.architecture"]), max(kept)
    n_block = layer_count(metadata, arch)[0]
    if arch not in READING:
        return {}
    windows = has_window(metadata, arch, n_block)
    return {il: kept[last] for il in range(last + 1, n_block) if not windows[il]}


def masked_logits(path: Path, tokens: list[int], n_prompt: int, kept: Kept, n_prefix: int, **options: Any) -> Logits:
    """Logits of the tokens after a prompt, none of which attends to what was not kept of the prefix.

    Returns
    -------
    f32 [n_tokens - n_prompt, n_vocab]
    """
    masked = Masked({**kept, **_of_readers(path, kept)}, n_prefix)
    with _evaluated_with(masked.callback):
        context = Context(path, **options | {"flash_attn": False, "n_cells": 0}, attach=False)
    try:
        context.decode(tokens[:n_prompt])
        masked.is_on = True
        logits = context.decode(tokens[n_prompt:])
    finally:
        context.close()
    assert masked.n_masked >= len(kept), "no probabilities were seen"
    return logits
