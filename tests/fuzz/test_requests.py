"""Damaged requests: each ends in an answer or in one line with a status of 4xx, and the server goes on."""

from __future__ import annotations

import json
import random
from collections import Counter
from copy import deepcopy
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.unit.server.served import MAX_BODY, make_served

N_CASES = 300
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PATHS = (
    CHAT,
    TEXT,
    "/v1/models",
    "/v1/models/fake",
    "/health",
    "/metrics",
    "/headkv/rows",
    "/",
    "/v1/\ud800x",
    "/../..//",
)
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
BASES: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, {"messages": [{"role": "user", "content": "Hello"}]}),
    (
        CHAT,
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            ],
            "stream": True,
            "stream_options": {"include_usage": True},
            "stop": ["x"],
        },
    ),
    (CHAT, {"messages": [{"role": "user", "content": "Hello"}], "tools": [TOOL], "tool_choice": "required", "seed": 1}),
    (CHAT, {"messages": [{"role": "user", "content": "Hello"}], "response_format": SCHEMA, "max_tokens": 4}),
    (TEXT, {"prompt": "Once", "temperature": 0.5, "logprobs": 2, "stream": True}),
    (TEXT, {"prompt": [1, 2, 300], "top_p": 0.5, "top_k": 4, "min_p": 0.1, "frequency_penalty": 1, "max_tokens": 3}),
)
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**64, -(2**63), 1e308, float("nan"), float("inf"), 10**400, "", "x", "\0", "\ud800",
    "\U0001f600", "x" * 3000, "<user>", "{{ 7 }}", [], [[]], {}, {"": None}, [None] * 50, {"a": {"b": []}}, "[DONE]",
)  # fmt: skip
HEADERS = (
    {}, {}, {}, {}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json; charset=utf-16"},
    {"Content-Type": "multipart/form-data; boundary=x"}, {"Content-Encoding": "gzip"}, {"Origin": "null"},
    {"Authorization": "Bearer \x7f"}, {"Accept": "image/png"}, {"Expect": "100-continue"}, {"Content-Length": "-1"},
)  # fmt: skip
NAMES = ("x", "", "n", "logit_bias", "tools", "messages", "prompt", "seed", "stop")
WORDS = (b"", b"[" * 4000, b"9" * 5000, b"1e999", b"\xff", b"\\ud800", b'"', b"null", b"{", b"}", b",", b"\x00")


def test_damaged_requests(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    first = request.config.getoption("--fuzz-seed", 0)
    end = first + (request.config.getoption("--fuzz-cases", None) or N_CASES)
    outcomes: Counter[str] = Counter()
    served = make_served(monkeypatch)
    with served.up() as client:
        for seed in range(first, end):
            method, path, headers, body = make_case(seed)
            try:
                outcomes[outcome(client, method, path, headers, body)] += 1
                if seed % 50 == 0:
                    outcomes["right: 200"] += (
                        outcome(client, "POST", CHAT, {}, json.dumps(BASES[0][1]).encode()) == "200"
                    )
            except Exception as error:
                raise AssertionError(f"seed {seed}: {method} {path!r} {headers} {body[:300]!r}") from error
        assert "headkv_waiting 0.0" in client.get("/metrics").text
    print(f"seeds {first} to {end - 1}: {dict(outcomes)}")
    assert outcomes["right: 200"] == len([seed for seed in range(first, end) if seed % 50 == 0])
    if end - first >= N_CASES:
        assert min(outcomes[status] for status in ("200", "400", "404", "405")) >= 3, outcomes


def outcome(client: TestClient, method: str, path: str, headers: dict[str, str], body: bytes) -> str:
    """The status, once it is known that the answer is in order."""
    url = path.encode("utf-8", "surrogatepass").decode("latin-1")
    response = client.request(method, url, content=body, headers={"Content-Type": "application/json", **headers})
    status = response.status_code
    assert status == 200 or 400 <= status < 500, f"status {status}: {response.text[:300]}"
    if status != 200 and method != "HEAD":
        error = response.json()["error"]
        assert error["message"] and "\n" not in error["message"] and len(response.content) < 5000, error
    elif response.headers["content-type"].startswith("text/event-stream"):
        *data, last = [line for line in response.text.splitlines() if line.startswith("data: ")]
        assert last == "data: [DONE]" or json.loads(last[6:])["error"]["type"] == "invalid_request_error", last
        assert all(json.loads(line[6:]) for line in data)
    elif method == "POST":
        assert response.json()["choices"]
    return str(status)


def make_case(seed: int) -> tuple[str, str, dict[str, str], bytes]:
    """Method, path, headers and body of a seed."""
    rng = random.Random(seed)
    path, base = rng.choice(BASES)
    value = deepcopy(base)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        change_value(value, rng)
    body = json.dumps(value).encode()
    if rng.random() < 0.25:
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(len(body) + 1)
            body = body[:at] + rng.choice(WORDS) + body[at + rng.randrange(4) :]
    if rng.random() < 0.05:
        body = body[: rng.randrange(len(body) + 1)]
    if rng.random() < 0.01:
        body += b" " * MAX_BODY
    if rng.random() < 0.1:
        path = rng.choice(PATHS)
    method = (
        rng.choice(("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE")) if rng.random() < 0.05 else "POST"
    )
    return method, path, rng.choice(HEADERS), body


def change_value(value: Any, rng: random.Random) -> None:
    """One change, somewhere inside."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        inner = [key for key in keys if isinstance(value[key], (dict, list)) and value[key]]
        if not inner or rng.random() < 0.4:
            break
        value = value[rng.choice(inner)]
    what = rng.choice(("set", "delete", "add"))
    if what == "set" and keys:
        value[rng.choice(keys)] = deepcopy(rng.choice(VALUES))
    elif what == "delete" and keys:
        del value[rng.choice(keys)]
    elif isinstance(value, dict):
        value[rng.choice(NAMES)] = deepcopy(rng.choice(VALUES))
    else:
        value.append(deepcopy(rng.choice(VALUES)))
