"""What a session measured: rows and bytes of the buffers that exist, times of the last turn, and both as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyheadkv.engine.native import Stats
from pyheadkv.model.shape import ModelShape
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.plan import Plan

MIB = 2**20


def mib(n_bytes: float | None, digits: int = 1) -> str:
    """Bytes in MiB; "-" where they were not measured."""
    return "-" if n_bytes is None else f"{n_bytes / MIB:.{digits}f}"


@dataclass(frozen=True)
class SessionStats:
    """The cache now, and the last turn: one prompt and its answer.

    Parameters
    ----------
    native
        rows and bytes, read from the buffers
    bytes_full
        what a whole cache of ``native.n_pos`` positions takes
    n_prompt
        tokens of the whole prompt
    n_read
        those that were evaluated for this turn; the others were in the cache
    n_generated
        tokens sampled, an end-of-turn token included
    n_decoded
        tokens evaluated while generating
    ms_prefill
        reading the prompt, the observation window included
    ms_reconstruction
        repeating the prompt, where the policy's scores are made that way
    ms_select
        choosing and gathering rows and freeing the full cache
    ms_decode
        evaluating generated tokens, without sampling
    """

    native: Stats
    bytes_full: int
    n_prompt: int
    n_read: int
    n_generated: int
    n_decoded: int
    ms_prefill: float
    ms_reconstruction: float
    ms_select: float
    ms_decode: float

    @property
    def bytes_measured(self) -> int:
        """Bytes of all K and V buffers that exist."""
        return self.native.bytes_hot + self.native.bytes_tail

    @property
    def tok_s_prefill(self) -> float:
        """Prompt tokens read per second; 0 when none was read."""
        return _rate(self.n_read, self.ms_prefill)

    @property
    def tok_s_decode(self) -> float:
        """Generated tokens evaluated per second; 0 when none was."""
        return _rate(self.n_decoded, self.ms_decode)


def _rate(n: int, ms: float) -> float:
    return n * 1000 / ms if ms > 0 else 0.0


@dataclass
class TurnTimer:
    """Counts and seconds of the turn that runs."""

    n_prompt: int = 0
    n_read: int = 0
    n_generated: int = 0
    n_decoded: int = 0
    prefill_s: float = 0.0
    reconstruction_s: float = 0.0
    select_s: float = 0.0
    decode_s: float = 0.0

    @property
    def is_used(self) -> bool:
        """Whether something was evaluated in this turn."""
        return self.n_read + self.n_decoded > 0

    @contextmanager
    def prefill(self) -> Iterator[None]:
        """Time the reading of a prompt; what `reconstruction` and `select` take inside is not counted."""
        start, others_s = time.perf_counter(), self.reconstruction_s + self.select_s
        try:
            yield
        finally:
            self.prefill_s += time.perf_counter() - start - (self.reconstruction_s + self.select_s - others_s)

    @contextmanager
    def reconstruction(self) -> Iterator[None]:
        """Time a repetition of the prompt."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.reconstruction_s += time.perf_counter() - start

    @contextmanager
    def select(self) -> Iterator[None]:
        """Time a compression."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.select_s += time.perf_counter() - start

    @contextmanager
    def decode(self, n: int) -> Iterator[None]:
        """Time the evaluation of n generated tokens."""
        start = time.perf_counter()
        yield
        self.decode_s += time.perf_counter() - start
        self.n_decoded += n

    def stats(self, native: Stats, bytes_per_token: int) -> SessionStats:
        """Freeze what was counted so far."""
        return SessionStats(
            native=native,
            bytes_full=native.n_pos * bytes_per_token,
            n_prompt=self.n_prompt,
            n_read=self.n_read,
            n_generated=self.n_generated,
            n_decoded=self.n_decoded,
            ms_prefill=self.prefill_s * 1000,
            ms_reconstruction=self.reconstruction_s * 1000,
            ms_select=self.select_s * 1000,
            ms_decode=self.decode_s * 1000,
        )


def kv_report(
    stats: SessionStats,
    plan: Plan | None,
    budget: Budget,
    shape: ModelShape,
    type_k: str,
    type_v: str,
) -> dict[str, Any]:
    """Build the objects "budget", "kv", "ms" and "tok_s".

    Rows and bytes are the plan's, of the prompt that was compressed; without a plan, of everything in the cache,
    which is whole then. "bytes_measured" and "peak_bytes" are read from the buffers, tail included.
    """
    n_pos = stats.native.n_pos
    rows = [list(heads) for heads in plan.rows] if plan else [[n_pos] * n for n in shape.n_head_kv]
    rows_full = plan.rows_full if plan else n_pos * shape.n_kv_heads
    rows_kept = plan.rows_kept if plan else rows_full
    bytes_full = plan.bytes_full if plan else stats.bytes_full
    bytes_kept = plan.bytes_kept if plan else bytes_full
    return {
        "budget": budget.to_json(rows_kept, plan.keep_ratio if plan else 1.0, bytes_kept),
        "kv": {
            "type_k": type_k,
            "type_v": type_v,
            "rows_full": rows_full,
            "rows_kept": rows_kept,
            "rows_per_head": rows,
            "bytes_full": bytes_full,
            "bytes_kept": bytes_kept,
            "bytes_measured": stats.bytes_measured,
            "peak_bytes": stats.native.bytes_peak,
        },
        "ms": {
            "prefill": round(stats.ms_prefill, 3),
            "reconstruction": round(stats.ms_reconstruction, 3),
            "select": round(stats.ms_select, 3),
            "decode": round(stats.ms_decode, 3),
        },
        "tok_s": {"prefill": round(stats.tok_s_prefill, 3), "decode": round(stats.tok_s_decode, 3)},
    }
