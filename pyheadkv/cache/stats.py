"""Measurements of a session: rows and bytes of the buffers that exist, times of the last turn, and both as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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


@dataclass(kw_only=True)
class TurnCounts:
    """One prompt and its answer.

    Parameters
    ----------
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

    n_prompt: int = 0
    n_read: int = 0
    n_generated: int = 0
    n_decoded: int = 0
    ms_prefill: float = 0.0
    ms_reconstruction: float = 0.0
    ms_select: float = 0.0
    ms_decode: float = 0.0

    @property
    def n_reused(self) -> int:
        """Tokens of the prompt that were in the cache or its archive."""
        return max(0, self.n_prompt - self.n_read)

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


@dataclass(kw_only=True)
class SessionStats(TurnCounts):
    """The cache now, and the last turn.

    Parameters
    ----------
    native
        rows and bytes, read from the buffers
    bytes_full
        size of a whole cache of ``native.n_pos`` positions
    archive
        where all rows lie, in words
    """

    native: Stats
    bytes_full: int
    archive: str = ""

    @property
    def bytes_measured(self) -> int:
        """Bytes of all K and V buffers that exist."""
        return self.native.bytes_hot + self.native.bytes_tail


@dataclass
class TurnTimer(TurnCounts):
    """The turn that runs."""

    @property
    def is_used(self) -> bool:
        """Whether something was evaluated in this turn."""
        return self.n_read + self.n_decoded > 0

    def prefill(self) -> AbstractContextManager[None]:
        """Time the reading of a prompt; what `reconstruction` and `select` take inside is not counted."""
        return self._timed("ms_prefill", "ms_reconstruction", "ms_select")

    def reconstruction(self) -> AbstractContextManager[None]:
        """Time a repetition of the prompt."""
        return self._timed("ms_reconstruction")

    def select(self) -> AbstractContextManager[None]:
        """Time a compression."""
        return self._timed("ms_select")

    @contextmanager
    def decode(self, n: int) -> Iterator[None]:
        """Time the evaluation of n generated tokens."""
        start = time.perf_counter()
        yield
        self.ms_decode += 1000 * (time.perf_counter() - start)
        self.n_decoded += n

    @contextmanager
    def _timed(self, name: str, *inside: str) -> Iterator[None]:
        counts, start = vars(self), time.perf_counter()
        before = sum(counts[other] for other in inside)
        try:
            yield
        finally:
            ms_inside = sum(counts[other] for other in inside) - before
            counts[name] += 1000 * (time.perf_counter() - start) - ms_inside

    def stats(self, native: Stats, bytes_per_token: int, archive: str = "") -> SessionStats:
        """Counts so far."""
        return SessionStats(native=native, bytes_full=native.n_pos * bytes_per_token, archive=archive, **vars(self))


def kv_report(
    stats: SessionStats,
    plan: Plan | None,
    budget: Budget,
    shape: ModelShape,
    type_k: str,
    type_v: str,
) -> dict[str, Any]:
    """Build the objects "budget", "kv", "archive", "turn", "ms" and "tok_s".

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
        "archive": {
            "place": stats.archive,
            "positions": stats.native.n_pos_archive,
            "bytes": stats.native.bytes_archive,
        },
        "turn": {"n_prompt": stats.n_prompt, "n_read": stats.n_read, "n_reused": stats.n_reused},
        "ms": {
            name: round(getattr(stats, f"ms_{name}"), 3) for name in ("prefill", "reconstruction", "select", "decode")
        },
        "tok_s": {"prefill": round(stats.tok_s_prefill, 3), "decode": round(stats.tok_s_decode, 3)},
    }
