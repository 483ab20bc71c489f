"""The only file that calls native code: headkv_* and a few llama_* functions of the library that llama_cpp has loaded.

Opening a shared library twice gives the same image, so a `llama_context` made by llama_cpp can be handed to these
functions. Numbers go in and out as NumPy arrays; every failure becomes an exception with the library's own sentence.
Nothing is loaded before the first call: importing this module needs no library.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cffi
import numpy as np
import numpy.typing as npt

from pyheadkv.engine import library as _library
from pyheadkv.engine.abi import (
    ABI_VERSION,
    ATTENTIONS,
    FOLDS,
    HEADKV_CDEF,
    OBSERVES,
    POOLS,
    SCORES,
    STATUS_COMPUTE,
    STATUS_OK,
    STATUS_UNSUPPORTED,
    STATUS_WRONG_STATE,
    UPSTREAM_CDEF,
)
from pyheadkv.engine.llama import context_of, loaded_library
from pyheadkv.errors import LibraryError, ModelError, NativeError, UsageError, one_line
from pyheadkv.model.shape import LayerShape

if TYPE_CHECKING:
    import llama_cpp

_ffi = cffi.FFI()
_ffi.cdef(HEADKV_CDEF)
_ffi.cdef(UPSTREAM_CDEF)


@dataclass(frozen=True)
class Stats:
    """``struct headkv_stats`` of native/headkv.h: rows, bytes of the buffers that exist, times in ms."""

    n_pos: int
    n_pos_hot: int
    n_pos_archive: int
    n_cells: int
    n_cells_used: int
    n_rows_full: int
    n_rows_hot: int
    n_rows_tail: int
    bytes_hot: int
    bytes_tail: int
    bytes_observed: int
    bytes_beside: int
    bytes_archive: int
    bytes_peak: int
    n_grow: int
    ms_select: float


@dataclass(frozen=True)
class Observe:
    """Tokens that observe: the last n_tokens of those that are read, of which n_ahead are read later.

    ``what`` is gathered, one of `OBSERVES`.
    """

    n_tokens: int
    what: str = "attn_mean"
    n_ahead: int = 0


class ScoreParams(Protocol):
    """How positions are rated: ``struct headkv_score_params``, in words."""

    @property
    def kind(self) -> str: ...  # one of `SCORES`

    @property
    def n_obs(self) -> int: ...  # observation window, in tokens

    @property
    def pool_kernel(self) -> int: ...  # odd positions pooled into each score

    @property
    def pool(self) -> str: ...  # one of `POOLS`

    @property
    def native_fold(self) -> str: ...  # one of `FOLDS`


class HeadParams(Protocol):
    """How each KV head's scores are pooled and share a vote, layer after layer."""

    @property
    def pool_kernels(self) -> Sequence[int]: ...  # odd positions pooled into each score

    @property
    def vote_weights(self) -> Sequence[float]: ...  # weight of each head in the vote

    @property
    def vote_shares(self) -> Sequence[float]: ...  # share of the vote in each head's scores

    @property
    def vote_kernel(self) -> int: ...  # pooling of the vote


@dataclass(frozen=True)
class Compression:
    """Rows that each KV head keeps, and how they are chosen: ``struct headkv_compress_params``.

    Parameters
    ----------
    rows
        of each KV head, layer-major, sinks and window included: uint32 [sum of n_head_kv]
    scorer
        how positions are rated; its last tokens observed what it gathers
    n_sink
        first positions that are always kept
    n_threads
        for selection and gather
    scoring
        pooling and vote of each KV head's scores, where heads differ
    scores
        for each layer f32 [n_head_kv, n_pos - n_obs], folded but not pooled, made elsewhere; by default
        those of the observed window
    spans
        protected positions [first, end), kept by every KV head beside the sinks: behind these, before the
        window, in order, none overlapping
    n_forced_max
        as in `Native.score_read`
    """

    rows: npt.NDArray[np.uint32]
    scorer: ScoreParams
    n_sink: int
    n_threads: int = 1
    scoring: HeadParams | None = None
    scores: Sequence[npt.NDArray[np.float32]] | None = None
    spans: Sequence[tuple[int, int]] = ()
    n_forced_max: int = 0

    @contextmanager
    def params(self) -> Iterator[Any]:
        """The struct, as long as the block lasts."""
        rows = np.ascontiguousarray(self.rows, dtype=np.uint32)
        params = _ffi.new("struct headkv_compress_params *")
        params.score = _score_params(self.scorer, self.n_forced_max)
        params.n_rows = _ffi.from_buffer("uint32_t[]", rows)
        params.n_rows_size = rows.size
        params.n_sink = self.n_sink
        params.n_threads = self.n_threads
        flat_spans = _ffi.new("uint32_t[]", [position for span in self.spans for position in span])
        params.spans, params.n_spans = flat_spans, len(self.spans)
        if self.scoring is not None:
            kernels = _ffi.new("uint32_t[]", list(self.scoring.pool_kernels))
            weights = _ffi.new("float[]", list(self.scoring.vote_weights))
            shares = _ffi.new("float[]", list(self.scoring.vote_shares))
            params.pool_kernels, params.vote_weights, params.vote_shares = kernels, weights, shares
            params.vote_kernel = self.scoring.vote_kernel
        if self.scores is not None:
            flat = np.concatenate([np.asarray(layer, dtype=np.float32).ravel() for layer in self.scores])
            params.scores, params.n_scores = _ffi.from_buffer("float[]", flat), flat.size
        yield params


def llama_bindings() -> Any:
    """llama-cpp-python's functions of llama.cpp, on our library; LibraryError where that is missing."""
    _library.prepare()
    try:
        from llama_cpp import llama_cpp  # loads its library
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise LibraryError(f"llama_cpp cannot be loaded: {one_line(error)}") from error
    return llama_cpp


@functools.cache
def _llama_lib() -> Any:
    """The image of libllama that llama_cpp uses, whoever built it."""
    llama_bindings()
    return _ffi.dlopen(loaded_library())


@functools.cache
def _headkv_lib() -> Any:
    """The same image, once it is known to be pyheadkv's and to speak our ABI."""
    lib = _llama_lib()
    try:
        version = lib.headkv_abi_version()
    except AttributeError as error:
        raise LibraryError(
            "llama_cpp has loaded a libllama without pyheadkv: import pyheadkv before llama_cpp"
        ) from error
    if version != ABI_VERSION:
        raise LibraryError(f"the native library has ABI version {version}, this pyheadkv needs {ABI_VERSION}")
    return lib


def abi_version() -> int:
    """ABI version of the loaded native library."""
    return int(_headkv_lib().headkv_abi_version())


def debug_alloc_fail(n: int) -> None:
    """Make the n-th allocation from now on fail, for tests; 0 is none. Counts over all threads of the process."""
    _headkv_lib().headkv_debug_alloc_fail(n)


def _check(status: int) -> None:
    if status >= STATUS_OK:
        return
    message = _text(_headkv_lib().headkv_last_error()) or f"native status {status}"
    if status == STATUS_UNSUPPORTED:
        raise ModelError(message)
    raise NativeError(message, status)


def _text(pointer: Any) -> str:
    return bytes(_ffi.string(pointer)).decode("utf-8", errors="replace")


def builtin_chat_names() -> list[str]:
    """Names of the chat templates that llama.cpp has."""
    lib = _llama_lib()
    names = _ffi.new("const char *[]", lib.llama_chat_builtin_templates(_ffi.NULL, 0))
    lib.llama_chat_builtin_templates(names, len(names))
    return [_text(name) for name in names]


def builtin_chat(name: str, messages: Sequence[tuple[str, str]]) -> str:
    """Messages, (role, text) each, and the beginning of an answer, as a chat template of llama.cpp writes them.

    Raises
    ------
    UsageError
        a text has a NUL character, at which C ends
    """
    lib = _llama_lib()
    if any("\0" in text for message in messages for text in message):
        raise UsageError(f"chat template {name} cannot write a NUL character")
    texts = [[_ffi.new("char[]", text.encode()) for text in message] for message in messages]
    chat = _ffi.new("struct llama_chat_message[]", texts)
    size = lib.llama_chat_apply_template(name.encode(), chat, len(texts), True, _ffi.NULL, 0)
    if size < 0:
        raise UsageError(f"llama.cpp has no chat template {name}, it has {', '.join(builtin_chat_names())}")
    buffer = _ffi.new("char[]", size + 1)
    lib.llama_chat_apply_template(name.encode(), chat, len(texts), True, buffer, size)
    return _text(buffer)


@contextmanager
def context_cells(n_cells: int) -> Iterator[None]:
    """Contexts made inside the block start with n_cells cells instead of n_ctx, and grow on demand.

    Call it on the thread that makes the context.
    """
    lib = _headkv_lib()
    _check(lib.headkv_context_next(n_cells))
    try:
        yield
    finally:
        lib.headkv_context_next(0)


class Native:
    """One llama_context, prepared for compression.

    Layer indices ``i`` count the layers that have a cache, as in `layers`; positions are int32, rows uint32.
    Every method raises NativeError, ModelError for what cannot be compressed, or UsageError where the Llama is closed,
    and then has changed nothing.

    Parameters
    ----------
    llama
        owner of the context
    """

    def __init__(self, llama: llama_cpp.Llama) -> None:
        self._lib = _headkv_lib()
        self._llama = llama
        _check(self._lib.headkv_attach(self._ctx))

    @property
    def _ctx(self) -> Any:
        """The llama_context, as long as it exists."""
        return _ffi.cast("struct llama_context *", ctypes.cast(context_of(self._llama), ctypes.c_void_p).value)

    def layers(self) -> tuple[LayerShape, ...]:
        """Layers with a KV cache of their own."""
        return tuple(
            LayerShape(raw.il, raw.n_head, raw.n_head_kv, raw.n_embd_head_k, raw.n_embd_head_v)
            for raw in self._raw_layers()
        )

    def row_bytes(self) -> tuple[int, ...]:
        """Bytes of one row, K and V, in each layer of `layers`."""
        return tuple(raw.row_bytes_k + raw.row_bytes_v for raw in self._raw_layers())

    def cell_bytes(self) -> tuple[tuple[int, int], ...]:
        """Bytes of K and of V of one position, all heads, in each layer of `layers`."""
        return tuple((raw.n_head_kv * raw.row_bytes_k, raw.n_head_kv * raw.row_bytes_v) for raw in self._raw_layers())

    def _raw_layers(self) -> Iterator[Any]:
        raw = _ffi.new("struct headkv_layer *")
        for i in range(self._lib.headkv_n_layer(self._ctx)):
            _check(self._lib.headkv_layer_get(self._ctx, i, raw))
            yield raw

    @contextmanager
    def abortable(self, is_stopped: Callable[[], bool]) -> Iterator[None]:
        """Within the block llama_decode asks after each operation on the CPU, and fails when the answer is true.

        Whole ubatches that were computed before stay in the cache. `is_stopped` must not raise. A callback that was set
        by llama_set_abort_callback is taken away.
        """
        from llama_cpp import llama_cpp as bindings

        context = context_of(self._llama)
        callback = bindings.ggml_abort_callback(lambda _: is_stopped())
        bindings.llama_set_abort_callback(context, callback, ctypes.c_void_p(0))
        try:
            yield
        finally:
            bindings.llama_set_abort_callback(context, bindings.ggml_abort_callback(), ctypes.c_void_p(0))

    def reserve(self, n_cells: int) -> None:
        """Make room for n_cells tail cells at once; never shrinks."""
        _check(self._lib.headkv_reserve(self._ctx, n_cells))

    def observe(self, n_tokens: int, what: str = "attn_mean", n_before: int = 0) -> None:
        """After n_before more the next n_tokens decoded tokens observe; 0 ends it.

        Parameters
        ----------
        what
            is gathered, one of `OBSERVES`: their attention to each position, mean or maximum, the statistics of their
            queries, or these themselves
        """
        _check(self._lib.headkv_observe(self._ctx, n_before, n_tokens, OBSERVES[what]))

    def read_reason(self) -> str:
        """Why `read` cannot read layer by layer on this model, or ""."""
        reason = self._lib.headkv_read_reason(self._ctx)
        if reason == _ffi.NULL:
            raise NativeError(_text(self._lib.headkv_last_error()), STATUS_WRONG_STATE)
        return _text(reason)

    def read(
        self,
        tokens: Sequence[int],
        *,
        observe: Observe | None = None,
        n_outputs: int = 1,
        n_fused: int = 0,
        folder: Path | None = None,
        compression: Compression | None = None,
        bytes_hidden: int = 0,
        on_progress: Callable[[int, int], None] = lambda n_done, n_total: None,
    ) -> None:
        """Read tokens after those in the cache layer by layer: the rows of the other layers lie in a file.

        Logits and rows are those that llama_decode leaves of batches of n_batch tokens, bit for bit without n_fused.
        The cache stays in the file until it is compressed.

        Parameters
        ----------
        observe
            which tokens observe; by default those of an observation that has begun
        n_outputs
            tokens at the end whose logits are left, as llama_decode leaves them; all of them in the last batch
        n_fused
            batches of at most so many tokens attend by the kernel of hot rows, on the CPU: faster, rounded otherwise
        folder
            where the file lies, which has no name and is gone with the process; by default the rows lie in memory
        compression
            at once: of each layer as soon as it was read, unless that takes the scores of others; without tokens ahead
        bytes_hidden
            of hidden states that exist at once, at most; 0: 256 MiB
        on_progress
            called with (tokens times layers done, in all); what it raises stops the reading, and is raised here
        """
        raised: list[BaseException] = []

        def report(n_done: int, n_total: int, _: Any) -> bool:
            try:
                on_progress(n_done, n_total)
            except BaseException as error:
                raised.append(error)
            return not raised

        values = np.ascontiguousarray(tokens, dtype=np.int32)
        params = _ffi.new("struct headkv_read_params *", {"bytes_hidden": bytes_hidden})
        params.n_outputs, params.n_fused = n_outputs, n_fused
        if observe is not None:
            params.n_observe, params.n_ahead, params.what = observe.n_tokens, observe.n_ahead, OBSERVES[observe.what]
        directory = _ffi.new("char[]", os.fsencode(folder)) if folder else _ffi.NULL
        progress = _ffi.callback("headkv_progress", report)
        params.dir, params.progress = directory, progress
        with compression.params() if compression else nullcontext(_ffi.NULL) as params.compress:
            status = self._lib.headkv_read(self._ctx, _ffi.from_buffer("int32_t[]", values), values.size, params)
        if raised:
            raise raised[0]
        _check(status)

    def attention_read(self, i: int, n_obs: int) -> npt.NDArray[np.float32]:
        """Attention of all n_obs observing tokens in layer i, f32 [n_head, n_pos - n_obs]; not folded, not pooled."""
        n_head = self.layers()[i].n_head
        return self._read(self._lib.headkv_attention_read, (n_head, self.stats().n_pos - n_obs), i)

    def score_read(self, i: int, scorer: ScoreParams, n_forced_max: int = 0) -> npt.NDArray[np.float32]:
        """Scores of layer i after the observing tokens were decoded, f32 [n_head_kv, n_pos - n_obs].

        n_forced_max is of layer_defensive: so many positions of a head at most have the highest score that there is.
        """
        n_head_kv = self.layers()[i].n_head_kv
        params = _ffi.new("struct headkv_score_params *", _score_params(scorer, n_forced_max))
        return self._read(self._lib.headkv_score_read, (n_head_kv, self.stats().n_pos - scorer.n_obs), i, params)

    def semantics_read(self, i: int, n_top: int) -> npt.NDArray[np.float32]:
        """Output of each KV head of layer i, f32 [n_head_kv, n_embd_head_v], when all tokens that observe are read.

        The values of the n_top positions with the largest attention, each times this attention, summed (Task-KV).
        """
        layer = self.layers()[i]
        return self._read(self._lib.headkv_semantics_read, (layer.n_head_kv, layer.n_embd_head_v), i, n_top)

    def _read(self, function: Any, shape: tuple[int, int], *arguments: Any) -> npt.NDArray[np.float32]:
        values = np.empty(shape, dtype=np.float32)
        _check(function(self._ctx, *arguments, _ffi.from_buffer("float[]", values), values.size))
        return values

    def compress(self, compression: Compression) -> None:
        """Keep rows of each KV head and free the full cache."""
        with compression.params() as params:
            _check(self._lib.headkv_compress(self._ctx, params))

    def keep(self, positions: Sequence[npt.ArrayLike], n_obs: int, n_threads: int = 1) -> None:
        """Keep exactly these positions of each KV head; the last n_obs positions stay in the tail.

        Parameters
        ----------
        positions
            for each KV head, layer-major, int32 [n_kept], strictly ascending, all below n_pos - n_obs
        """
        heads = [np.asarray(head, dtype=np.int32) for head in positions]
        n_kept = np.array([head.size for head in heads], dtype=np.uint32)
        flat = np.concatenate([np.empty(0, dtype=np.int32), *heads])
        counts, pos = _ffi.from_buffer("uint32_t[]", n_kept), _ffi.from_buffer("int32_t[]", flat)
        _check(self._lib.headkv_keep(self._ctx, n_obs, counts, n_kept.size, pos, flat.size, n_threads))

    def positions(self, i: int, ih: int) -> npt.NDArray[np.int32]:
        """Positions of the hot rows of KV head ih of layer i, int32, ascending; empty without hot rows."""
        n = self._lib.headkv_positions(self._ctx, i, ih, _ffi.NULL, 0)
        _check(n)
        kept = np.empty(n, dtype=np.int32)
        _check(self._lib.headkv_positions(self._ctx, i, ih, _ffi.from_buffer("int32_t[]", kept), n))
        return kept

    def stats(self) -> Stats:
        """Rows and bytes as they are now."""
        raw = _ffi.new("struct headkv_stats *")
        _check(self._lib.headkv_stats_get(self._ctx, raw))
        return Stats(**{field.name: getattr(raw, field.name) for field in fields(Stats)})

    def reset_peak(self) -> None:
        """Count bytes_peak anew from here."""
        _check(self._lib.headkv_stats_reset_peak(self._ctx))

    def synchronize(self) -> None:
        """Wait until everything decoded so far is computed."""
        self._lib.llama_synchronize(self._ctx)

    def state_save(self) -> npt.NDArray[np.uint8]:
        """All rows of a cache that is not compressed, as llama.cpp writes them, uint8."""
        state = np.empty(self._lib.llama_state_seq_get_size(self._ctx, 0), dtype=np.uint8)
        buffer = _ffi.from_buffer("uint8_t[]", state)
        if self._lib.llama_state_seq_get_data(self._ctx, buffer, state.size, 0) == 0:
            raise NativeError("the rows of this cache cannot be saved: it is compressed or empty", STATUS_UNSUPPORTED)
        return state

    def state_restore(self, state: npt.NDArray[np.uint8]) -> None:
        """Put rows of `state_save` into an empty cache that has cells for them."""
        buffer = _ffi.from_buffer("uint8_t[]", state)
        if self._lib.llama_state_seq_set_data(self._ctx, buffer, state.size, 0) == 0:
            raise NativeError(f"a state of {state.size} bytes does not fit into this cache", STATUS_COMPUTE)

    def rows_get(self, i: int, is_k: bool, first: int, n: int) -> npt.NDArray[np.uint8]:
        """Rows of positions [first, first + n) of layer i, K or V of all heads, in the cache's bytes: uint8 [n, size].

        Of a whole cache, or of the archive beside a compressed one.
        """
        rows = np.empty((n, self.cell_bytes()[i][not is_k]), dtype=np.uint8)
        _check(self._lib.headkv_rows_get(self._ctx, i, is_k, first, n, _ffi.from_buffer(rows), rows.nbytes))
        return rows

    def rows_set(self, i: int, is_k: bool, first: int, rows: npt.NDArray[np.uint8]) -> None:
        """Set rows of layer i from a position on, as `rows_get` gives them; after `rows_begin`."""
        buffer = _ffi.from_buffer(np.ascontiguousarray(rows))
        _check(self._lib.headkv_rows_set(self._ctx, i, is_k, first, len(rows), buffer, rows.nbytes))

    def rows_begin(self, tokens: Sequence[int], folder: Path | None = None) -> None:
        """Make an empty cache a whole one of tokens, in an archive in a folder or in memory: its rows are to be set."""
        values = np.ascontiguousarray(tokens, dtype=np.int32)
        directory = _ffi.new("char[]", os.fsencode(folder)) if folder else _ffi.NULL
        _check(self._lib.headkv_rows_begin(self._ctx, _ffi.from_buffer("int32_t[]", values), values.size, directory))

    def keep_archive(self, is_kept: bool) -> None:
        """Whether the archive that a prompt was read into stays, beside a cache that is compressed."""
        _check(self._lib.headkv_keep_archive(self._ctx, is_kept))

    def reopen(self, n_pos: int) -> None:
        """Have the first n_pos positions whole again, in the archive: read there as they are, others as decoded."""
        _check(self._lib.headkv_reopen(self._ctx, n_pos))

    def attention_set(self, attention: str) -> None:
        """Choose how hot rows are attended to: "fused" or "unfused"."""
        _check(self._lib.headkv_attention_set(self._ctx, ATTENTIONS[attention]))


def _score_params(scorer: ScoreParams, n_forced_max: int) -> dict[str, int]:
    return {
        "n_obs": scorer.n_obs,
        "pool_kernel": scorer.pool_kernel,
        "pool": POOLS[scorer.pool],
        "fold": FOLDS[scorer.native_fold],
        "kind": SCORES[scorer.kind],
        "n_forced_max": n_forced_max,
    }
