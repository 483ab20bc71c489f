"""A limit of memory: what it leaves to whom, answers that reach it, and bodies that wait."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pyheadkv.errors import UsageError
from pyheadkv.server import memory
from pyheadkv.server.memory import MemoryLimit
from tests.unit.server.served import WORDS, Served, ServedLlama, make_served

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
MIB = 1 << 20
LIMIT = 320 * MIB


def limited(monkeypatch: pytest.MonkeyPatch, resident: Callable[[ServedLlama], int]) -> Served:
    llama = ServedLlama()
    monkeypatch.setattr(memory, "resident", lambda: resident(llama))
    monkeypatch.setattr(memory, "_LOOK_SECONDS", 0)
    return make_served(monkeypatch, llama, limit=MemoryLimit(LIMIT, "320MiB"))


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_that_reaches_the_limit(monkeypatch: pytest.MonkeyPatch, is_stream: bool) -> None:
    served = limited(monkeypatch, lambda llama: (311 if llama.n_said == 2 else 309) * MIB)
    with served.up() as client:
        response = client.post(CHAT, json=HELLO | {"stream": is_stream})
        lines = response.text.splitlines()
        error = json.loads(lines[-2].removeprefix("data: ") if is_stream else response.text)["error"]
        assert error["message"] == (
            "the process has 311 MiB of memory, more than the 310 MiB that --limit-memory 320MiB allows an answer: "
            "the cache was emptied"
        )
        assert error["code"] == "memory_limit_reached" and error["type"] == "server_error"
        if not is_stream:
            assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert served.llama.n_said == 2 and served.llama.n_tokens == 0
        served.llama.n_said = 10
        again = client.post(CHAT, json=HELLO).json()
        assert again["choices"][0]["message"]["content"] == "".join(WORDS)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_below_the_limit_the_cache_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with limited(monkeypatch, lambda llama: 310 * MIB).up() as client:
        for n_cached in (0, 6):
            usage = client.post(CHAT, json=HELLO | {"messages": [*HELLO["messages"]] * (n_cached + 1)}).json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == n_cached


def test_it_is_looked_at_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback is asked a thousand times a token."""
    looks: list[float] = []
    monkeypatch.setattr(memory, "resident", lambda: looks.append(0) or 0)
    clock = 5.0
    monkeypatch.setattr(memory.time, "monotonic", lambda: clock)
    must_end = MemoryLimit(LIMIT, "").ending(lambda: False)
    looks.clear()
    for _ in range(100):
        assert not must_end()
        clock += 0.001
    assert 9 <= len(looks) <= 11


def test_shares() -> None:
    for n_bytes, share in ((LIMIT, 40 * MIB), (64 << 30, 256 * MIB)):
        limit = MemoryLimit(n_bytes, "")
        assert limit.bytes_model == n_bytes - share
        assert share // 200 < limit.max_bodies < share // 100


def test_without_a_count_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resident", lambda: None)
    with pytest.raises(UsageError, match="--limit-memory needs /proc"):
        MemoryLimit(LIMIT, "320MiB")


def test_bodies_that_are_here_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    served = make_served(monkeypatch)
    with served.up(max_bodies=300) as client, ThreadPoolExecutor(1) as pool:
        body = {"messages": [{"role": "user", "content": "x" * 150}]}
        served.llama.gate.clear()
        first = pool.submit(client.post, CHAT, json=body)
        while not served.llama.prompts:
            threading.Event().wait(0.001)
        for sent in (body, iter([json.dumps(body).encode()])):
            options: dict[str, Any] = {"json": sent} if sent is body else {"content": sent}
            refused = client.post(CHAT, **options)
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["message"].startswith("requests of 193 bytes are here already")
        assert client.post(CHAT, json=HELLO | {"n": 2}).status_code == 400  # a small one has room
        served.llama.gate.set()
        assert first.result(30).status_code == 200
        for _ in range(3):
            assert client.post(CHAT, json=body).status_code == 200
