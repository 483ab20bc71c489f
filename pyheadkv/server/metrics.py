"""Counters in Prometheus's text format, at /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pyheadkv.server.conversations import Conversations
from pyheadkv.server.worker import Finished

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """What one server has done.

    Parameters
    ----------
    n_waiting
        gives the jobs that wait now
    """

    def __init__(self, n_waiting: Callable[[], int]) -> None:
        self._registry = own = CollectorRegistry()
        self._requests = Counter("headkv_requests", "Answers over HTTP.", ["path", "status"], registry=own)
        self._prompt = Counter("headkv_prompt_tokens", "Tokens of prompts.", ["how"], registry=own)
        self._generated = Counter("headkv_generated_tokens", "Tokens of answers.", registry=own)
        self._seconds = Counter("headkv_seconds", "Time at the model.", ["at"], registry=own)
        self._kv = Gauge("headkv_kv_bytes", "K and V behind the last answer.", ["which"], registry=own)
        Gauge("headkv_waiting", "Requests that wait for the model.", registry=own).set_function(n_waiting)

    def watch_conversations(self, conversations: Conversations) -> None:
        """Those that are parked, too."""
        for name, words, value in (
            ("headkv_conversations", "Conversations on disk.", lambda: conversations.n_parked),
            ("headkv_conversations_bytes", "Of their files.", lambda: conversations.n_bytes),
            ("headkv_conversations_loaded", "Times that one was loaded.", lambda: conversations.n_loaded),
        ):
            Gauge(name, words, registry=self._registry).set_function(value)

    def count_request(self, path: str, status: int) -> None:
        """Count an answer over HTTP; `path` is one of few."""
        self._requests.labels(path, str(status)).inc()

    def count_answer(self, finished: Finished) -> None:
        """Count an answer of the model."""
        stats = finished.stats
        self._prompt.labels("read").inc(stats.n_read)
        self._prompt.labels("reused").inc(max(0, stats.n_prompt - stats.n_read))
        self._generated.inc(finished.n_generated)
        self._seconds.labels("reading").inc((stats.ms_prefill + stats.ms_reconstruction) / 1000)
        self._seconds.labels("selecting").inc(stats.ms_select / 1000)
        self._seconds.labels("generating").inc(stats.ms_decode / 1000)
        for which, n_bytes in (
            ("measured", stats.bytes_measured),
            ("whole", stats.bytes_full),
            ("peak", stats.native.bytes_peak),
        ):
            self._kv.labels(which).set(n_bytes)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
