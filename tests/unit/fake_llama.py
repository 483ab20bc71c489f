"""A Llama and its native side without a model: the bookkeeping is real, the numbers are not.

`FakeLlama.generate` and `.eval` follow llama-cpp-python's, step by step, on a `FakeMemory` that remembers which token
lies at which position and keeps the promises of native/headkv.h. So a test can ask whether the cache holds the
conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from pyheadkv.chat import session
from pyheadkv.engine.abi import STATUS_WRONG_STATE
from pyheadkv.engine.native import Compression, Observe, Stats
from pyheadkv.errors import NativeError
from pyheadkv.model.shape import LayerShape

LAYERS = (LayerShape(0, 4, 2, 64, 64), LayerShape(1, 4, 2, 64, 64))
N_HEADS = 4
ROW_BYTES = 256
VOCABULARY = 1000


class FakeMemory:
    """Tokens by position, the compressed part in front, and the calls that were made."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.n_prefix = 0
        self.observing = 0
        self.window_left = 0
        self.reserved = 0
        self.rows: np.ndarray | None = None
        self.spans: object = ()
        self.fail: dict[str, int] = {}  # method -> status to fail with, once
        self.calls: list[str] = []

    def seq_rm(self, p0: int) -> bool:
        if 0 < p0 < self.n_prefix:
            return False
        if p0 == 0:
            self.n_prefix = 0
        del self.tokens[p0:]
        return True

    def decode(self, tokens: list[int], pos: int) -> None:
        if pos != len(self.tokens):
            raise RuntimeError("llama_decode returned -1")
        self.tokens += tokens
        self.window_left = max(0, self.window_left - len(tokens))

    def call(self, name: str, *arguments: int) -> None:
        self.calls.append(f"{name}({', '.join(map(str, arguments))})" if arguments else name)
        if name in self.fail:
            raise NativeError(f"{name} failed", self.fail.pop(name))


class FakeNative:
    """Stands in for pyheadkv.engine.native.Native on the memory of a FakeLlama."""

    def __init__(self, llama: FakeLlama) -> None:
        self.memory = llama.memory

    def layers(self) -> tuple[LayerShape, ...]:
        return LAYERS

    def synchronize(self) -> None:
        pass

    def abortable(self, is_stopped: object) -> nullcontext[None]:
        return nullcontext()

    def reserve(self, n_cells: int) -> None:
        self.memory.call("reserve")
        self.memory.reserved = n_cells

    def observe(self, n_obs: int, what: str = "attn_mean", n_before: int = 0) -> None:
        self.memory.call("observe", n_obs)
        if self.memory.n_prefix:
            raise NativeError("a prefix exists", STATUS_WRONG_STATE)
        self.memory.observing, self.memory.window_left = n_obs, n_before + n_obs

    def keep_archive(self, is_kept: bool) -> None:
        pass

    def read_reason(self) -> str:
        return ""

    def read(self, tokens: list[int], *, observe: Observe | None, compression: Compression | None, **_: object) -> None:
        self.memory.call("read", len(tokens))
        self.memory.decode(tokens, len(self.memory.tokens))
        if observe:
            self.memory.observing, self.memory.window_left = observe.n_tokens, observe.n_ahead
        if compression:
            self.compress(compression)

    def attention_read(self, i: int, n_obs: int) -> np.ndarray:
        self.memory.call("attention_read")
        if self.memory.observing != n_obs or self.memory.window_left:
            raise NativeError("the repetition was not all observed", STATUS_WRONG_STATE)
        return np.zeros((LAYERS[i].n_head, len(self.memory.tokens) - n_obs), dtype=np.float32)

    def compress(self, how: Compression) -> None:
        memory = self.memory
        memory.spans = how.spans
        memory.call("compress")
        if how.scores is None and (not memory.observing or memory.window_left):
            raise NativeError("the observation window is not full", STATUS_WRONG_STATE)
        memory.rows = how.rows
        memory.n_prefix = len(memory.tokens) - how.scorer.n_obs
        memory.observing = 0

    def positions(self, i: int, ih: int) -> np.ndarray:
        assert self.memory.rows is not None
        return np.arange(min(self.memory.rows[2 * i + ih], self.memory.n_prefix), dtype=np.int32)

    def stats(self) -> Stats:
        n_pos, n_prefix = len(self.memory.tokens), self.memory.n_prefix
        prefix = int(self.memory.rows.sum()) if n_prefix and self.memory.rows is not None else 0
        tail = (n_pos - n_prefix) * N_HEADS
        return Stats(
            n_pos=n_pos,
            n_pos_hot=n_prefix,
            n_pos_archive=0,
            n_cells=n_pos - n_prefix,
            n_cells_used=n_pos - n_prefix,
            n_rows_full=n_pos * N_HEADS,
            n_rows_hot=prefix,
            n_rows_tail=tail,
            bytes_hot=prefix * ROW_BYTES,
            bytes_tail=tail * ROW_BYTES,
            bytes_observed=0,
            bytes_beside=0,
            bytes_archive=0,
            bytes_peak=n_pos * N_HEADS * ROW_BYTES,
            n_grow=0,
            ms_select=0.0,
        )


class FakeLlama:
    """The parts of llama_cpp.Llama 0.3.36 that a session touches."""

    def __init__(self, n_ctx: int = 4096, n_batch: int = 64) -> None:
        self.model_path = "fake.gguf"
        self.memory = FakeMemory()
        self.n_batch = n_batch
        self.n_threads_batch = 2
        self.n_tokens = 0
        self.input_ids = np.zeros(n_ctx, dtype=np.intc)
        self.cache = None
        self._logits_all = False
        self.metadata = {"general.architecture": "llama", "general.name": "fake"}
        self.context_params = SimpleNamespace(type_k=1, type_v=1, embeddings=False)
        self.model_params = SimpleNamespace(n_gpu_layers=0)
        self._model = SimpleNamespace(n_ctx_train=lambda: n_ctx, vocab_type=lambda: 0, n_params=lambda: 134515008)
        self._ctx = SimpleNamespace(ctx=None, kv_cache_seq_rm=lambda seq, p0, p1: self.memory.seq_rm(p0))
        self.batches: list[int] = []
        self.interrupt_after = -1  # batches until Ctrl-C
        self.n_drafts = 0  # tokens that a draft model guesses after each token

    def n_ctx(self) -> int:
        return len(self.input_ids)

    def reset(self) -> None:
        self.n_tokens = 0

    def eval(self, tokens: list[int]) -> None:
        self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1)  # the result is ignored there, too
        for start in range(0, len(tokens), self.n_batch):
            batch = tokens[start : start + self.n_batch]
            self.memory.decode(list(batch), self.n_tokens)
            if self.interrupt_after == 0:
                self.interrupt_after = -1
                raise KeyboardInterrupt
            self.interrupt_after -= 1
            self.batches.append(len(batch))
            self.input_ids[self.n_tokens : self.n_tokens + len(batch)] = batch
            self.n_tokens += len(batch)

    def generate(
        self, tokens: list[int], reset: bool = True, stopping_criteria: Callable[..., bool] | None = None
    ) -> Iterator[int]:
        tokens = list(tokens)
        if reset and self.n_tokens > 0:
            cached = self.input_ids[: self.n_tokens].tolist()
            longest = next(
                (i for i, (a, b) in enumerate(zip(cached, tokens, strict=False)) if a != b),
                min(len(cached), len(tokens)),
            )
            reuse = longest - 1 if longest == len(tokens) else longest
            if cached == tokens:
                reset, tokens = False, []
            elif reuse > 0 and self._ctx.kv_cache_seq_rm(-1, reuse, -1):
                reset, tokens, self.n_tokens = False, tokens[reuse:], reuse
        if reset:
            self.reset()
        is_generating = False
        while True:
            self.eval(tokens)
            if is_generating and self.n_drafts:  # the guesses are always wrong, and cut off again
                self.n_tokens -= self.n_drafts
                self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1)
            is_generating = True
            token = self.n_tokens % VOCABULARY
            if stopping_criteria and stopping_criteria(self.input_ids, None):
                return
            yield token
            tokens = [token, *range(self.n_drafts)]

    def set_cache(self, cache: object) -> None:
        self.cache = cache

    def save_state(self) -> SimpleNamespace:
        return SimpleNamespace(n_tokens=self.n_tokens)

    def load_state(self, state: SimpleNamespace) -> None:
        self.n_tokens = state.n_tokens

    def close(self) -> None:
        pass


def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that finds a fake native side and a model file without keys and profile."""
    monkeypatch.setattr(session, "Native", FakeNative)
    monkeypatch.setattr(session, "read_gguf_metadata", lambda path: {})
    monkeypatch.setattr(session, "find_profile", lambda path, metadata, shape, file: None)
