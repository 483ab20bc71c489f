"""Answers over HTTP as OpenAI's API has them: whole and in streams, refusals, the queue, and what is logged."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from pyheadkv.errors import NativeError
from pyheadkv.server.worker import Job
from tests.unit.server.served import MAX_BODY, WORDS, Served, ServedLlama, make_served

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
OTHER = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "minProperties": 1}}}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    return make_served(monkeypatch)


@pytest.fixture
def client(served: Served) -> Iterator[TestClient]:
    with served.up() as client:
        yield client


def chunks_of(client: TestClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Objects of a stream, whose last word is [DONE]."""
    with client.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    *data, last = data
    assert last == "[DONE]"
    return [json.loads(line) for line in data]


# ---- answers ----


def test_a_whole_answer(served: Served, client: TestClient) -> None:
    answer = client.post(CHAT, json=HELLO | {"temperature": 0, "seed": 7}).json()
    assert served.llama.prompts == ["<user>Hello<assistant>"]
    assert served.llama.settings[0]["temp"] == 0 and served.llama.seed == 7
    choice = answer["choices"][0]
    assert choice["message"]["content"] == "".join(WORDS) and choice["finish_reason"] == "stop"
    assert answer["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert answer["model"] == "fake" and answer["object"] == "chat.completion"
    assert answer["headkv"]["bytes_measured"] == answer["headkv"]["bytes_full"] > 0
    again = client.post(CHAT, json=HELLO | {"messages": [*HELLO["messages"], *HELLO["messages"]]}).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 6
    assert served.llama.settings[1]["temp"] == 0.5  # the server's own


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_stream_says_what_the_whole_answer_says(client: TestClient, path: str) -> None:
    body = HELLO if path == CHAT else {"prompt": "Hello"}
    body = body | {"logprobs": True, "top_logprobs": 2} if path == CHAT else body | {"logprobs": 2}
    whole = client.post(path, json=body).json()
    chunks = chunks_of(client, path, body | {"stream_options": {"include_usage": True}})
    *chunks, usage = chunks
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    if path == CHAT:
        assert choices[0]["delta"]["role"] == "assistant"
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        assert text == whole["choices"][0]["message"]["content"]
        said = [item for choice in choices if choice["logprobs"] for item in choice["logprobs"]["content"]]
        assert said == whole["choices"][0]["logprobs"]["content"]
        assert len(said) == 5 and [top["token"] for top in said[0]["top_logprobs"]] == ["t199", "t198"]
    else:
        assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
        whole_said = whole["choices"][0]["logprobs"]
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [it for choice in choices for it in choice["logprobs"][key]] == whole_said[key]


def test_a_stop_word_over_two_tokens(client: TestClient) -> None:
    answer = client.post(CHAT, json=HELLO | {"stop": ["leaves at", "nothing"]}).json()["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == ("The ferry ", "stop")
    chunks = chunks_of(client, CHAT, HELLO | {"stop": "leaves at"})
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "The ferry "


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(("n", "text", "reason"), [(0, "", "length"), (2, "The ferry ", "length"), (6, None, "stop")])
def test_the_length_of_an_answer(client: TestClient, field: str, n: int, text: str | None, reason: str) -> None:
    answer = client.post(CHAT, json=HELLO | {field: n}).json()
    assert answer["choices"][0]["message"]["content"] == ("".join(WORDS) if text is None else text)
    assert answer["choices"][0]["finish_reason"] == reason
    assert answer["usage"]["completion_tokens"] == min(n, 5)


def test_an_answer_ends_with_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    served = make_served(monkeypatch, ServedLlama([f"{i} " for i in range(95)], n_ctx=90))
    with served.up() as client:
        answer = client.post(CHAT, json=HELLO).json()
        assert answer["usage"]["total_tokens"] == 90 and answer["choices"][0]["finish_reason"] == "length"


def test_a_character_of_several_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [bytes([byte]).decode("utf-8", "surrogateescape") for byte in "é!".encode()]
    served = make_served(monkeypatch, ServedLlama([*pieces, "\udcff", "ok"]))
    with served.up() as client:
        chunks = chunks_of(client, CHAT, HELLO)
        assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[1:-1]] == ["é", "!", "ok"]


def test_messages_of_all_kinds(served: Served, client: TestClient) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    assert client.post(CHAT, json={"messages": messages}).status_code == 200
    assert served.llama.prompts == ["<system>Be brief.<user>a\nb<assistant><tool>42<assistant>"]


def test_the_answer_can_be_sent_back(served: Served, client: TestClient) -> None:
    for more in ({}, {"tools": [TOOL], "tool_choice": "required"}):
        message = client.post(CHAT, json=HELLO | more).json()["choices"][0]["message"]
        response = client.post(CHAT, json={"messages": [*HELLO["messages"], message, *HELLO["messages"]]})
        assert response.status_code == 200, response.text


def test_completions_take_text_and_tokens(served: Served, client: TestClient) -> None:
    for prompt in ("<user>Hi", ["<user>Hi"], [1, 1072, 1105]):
        assert client.post(TEXT, json={"prompt": prompt}).json()["choices"][0]["text"] == "".join(WORDS)
    assert served.llama.prompts == ["<user>Hi"] * 3


# ---- tools and formats ----


def test_a_tool_that_must_be_called(served: Served, client: TestClient) -> None:
    served.llama.words = ['{"x": ', "1}"]
    body = HELLO | {"tools": [TOOL, OTHER], "tool_choice": {"type": "function", "function": {"name": "look_up"}}}
    choice = client.post(CHAT, json=body).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    function = choice["message"]["tool_calls"][0]["function"]
    assert function == {"name": "look_up", "arguments": '{"x": 1}'}
    assert served.schemas == [TOOL["function"]["parameters"]]
    assert served.llama.settings[0]["logits_processor"] == [served.follower]
    assert '"name": "look_up"' in served.llama.prompts[0]
    calls = [chunk["choices"][0]["delta"].get("tool_calls") for chunk in chunks_of(client, CHAT, body)]
    functions = [call[0]["function"] for call in calls if call]
    assert functions[0]["name"] == "look_up"
    assert "".join(function["arguments"] for function in functions) == '{"x": 1}'


def test_one_of_several_tools(served: Served, client: TestClient) -> None:
    served.llama.words = ['{"name": "add", ', '"arguments": {"a": [1]}}']
    body = HELLO | {"tools": [TOOL, OTHER], "tool_choice": "required"}
    expected = {"name": "add", "arguments": '{"a": [1]}'}
    message = client.post(CHAT, json=body).json()["choices"][0]["message"]
    assert message["tool_calls"][0]["function"] == expected
    chunks = chunks_of(client, CHAT, body)
    assert [c["choices"][0]["delta"]["tool_calls"][0]["function"] for c in chunks[1:-1]] == [expected]
    (schema,) = {json.dumps(schema) for schema in served.schemas}
    names = [choice["properties"]["name"]["const"] for choice in json.loads(schema)["anyOf"]]
    assert names == ["look_up", "add"]
    served.llama.words = ['{"name": "add", ', '"argu']
    cut = client.post(CHAT, json=body | {"max_tokens": 2}).json()["choices"][0]
    assert cut["finish_reason"] == "length"
    assert cut["message"]["tool_calls"][0]["function"] == {"name": "", "arguments": '{"name": "add", "argu'}


@pytest.mark.parametrize("choice", ["auto", "none", None])
def test_tools_that_need_not_be_called(served: Served, client: TestClient, choice: str | None) -> None:
    body = HELLO | {"tools": [TOOL], "tool_choice": choice}
    assert client.post(CHAT, json=body).json()["choices"][0]["message"]["content"] == "".join(WORDS)
    assert ("look_up" in served.llama.prompts[0]) == (choice != "none")
    assert served.schemas == []


@pytest.mark.parametrize(
    ("response_format", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {}),
        ({"type": "json_object", "schema": {"type": "array"}}, {"type": "array"}),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}, {"type": "array"}),
    ],
)
def test_formats(served: Served, client: TestClient, response_format: object, schema: object) -> None:
    assert client.post(CHAT, json=HELLO | {"response_format": response_format}).status_code == 200
    assert served.schemas == ([] if schema is None else [schema])


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_grammar_without_a_way_on(served: Served, client: TestClient, is_stream: bool) -> None:
    served.follower.is_stuck = True
    body = HELLO | {"response_format": {"type": "json_object"}, "stream": is_stream}
    response = client.post(CHAT, json=body)
    assert "no token fits the JSON schema behind 0 of the answer" in response.text
    assert response.status_code == (200 if is_stream else 400)
    served.follower.is_stuck = False
    assert client.post(CHAT, json=HELLO).status_code == 200


# ---- what is refused ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0: "),
        ({"messages": [{"role": "user"}]}, "messages.0.user.content: "),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages.0.user"),
        ({"messages": [{"role": "user", "content": "half \ud800"}]}, "half a character"),
        ({"\ud800": 1}, "half a character"),
        ({"unknown": 1}, "unknown: Extra inputs are not permitted"),
        ({"x" * 5000: 1}, "xx..."),
        ({"messages": [{"role": {"x" * 5000: 1}}]}, "x..."),
        ({"temperature": -1}, "temperature: "),
        ({"temperature": float("nan")}, "temperature: "),
        ({"top_p": 2}, "top_p: "),
        ({"seed": 2**32}, "seed: "),
        ({"seed": 10**5000}, ""),
        ({"n": 2}, "n: "),
        ({"logit_bias": {"1": 2}}, "logit_bias: Extra inputs are not permitted"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"max_tokens": 1.5}, "max_tokens: "),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice names no"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"refused": 1}}}}, "refus"),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, "2002 tokens, and the context of 2000 must have"),
    ],
)
def test_bad_requests_are_400_with_one_line(
    served: Served, client: TestClient, change: dict[str, Any], words: str
) -> None:
    try:
        body = json.dumps(HELLO | change)
    except ValueError:  # more digits than Python writes
        body = '{"messages": [], "seed": 1' + "0" * 5000 + "}"
    response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    error = response.json()["error"]
    assert response.status_code == 400 and error["type"] == "invalid_request_error", error
    assert words in error["message"] and "\n" not in error["message"] and len(response.content) < 4000
    assert served.llama.prompts == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 5000, b'{"messages":' * 900 + b"1", b'"\\ud800"']
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_is_no_request_is_400(client: TestClient, path: str, body: bytes) -> None:
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
        response = client.post(path, content=body, headers={"Content-Type": kind})
        assert response.status_code == 400 and response.json()["error"]["message"]


def test_a_prompt_too_long_has_openais_code(client: TestClient) -> None:
    for body, path in (
        (HELLO | {"messages": [{"role": "user", "content": "x" * 2000}]}, CHAT),
        ({"prompt": "x" * 2000}, TEXT),
    ):
        assert client.post(path, json=body).json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize("prompt", ["", [], [[1]], [-1], [2**31], [100_000], ["a", "b"], 5, None])
def test_bad_prompts(client: TestClient, prompt: object) -> None:
    assert client.post(TEXT, json={"prompt": prompt}).status_code == 400


def test_without_a_template_only_texts_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = ServedLlama()
    del llama.metadata["tokenizer.chat_template"]
    with make_served(monkeypatch, llama).up() as client:
        assert "--chat-template" in client.post(CHAT, json=HELLO).json()["error"]["message"]
        assert client.post(TEXT, json={"prompt": "Hi"}).status_code == 200


def test_other_paths_and_methods(client: TestClient) -> None:
    for response, status in ((client.get("/v1/nothing"), 404), (client.get(CHAT), 405), (client.get("/docs"), 404)):
        assert response.status_code == status and response.json()["error"]["type"] == "invalid_request_error"
    assert client.get(CHAT).headers["allow"] == "POST"


def test_the_model_is_listed(client: TestClient) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    assert card["id"] == "fake" and card["context_length"] == 2000
    assert client.get("/v1/models/fake").json() == card
    assert client.get("/v1/models/gpt").json()["error"]["code"] == "model_not_found"


# ---- who may ask ----


def test_keys(served: Served) -> None:
    with served.up(keys=(b"first", b"second")) as client:
        assert client.get("/health").status_code == 200
        for given in ({}, {"Authorization": "Bearer"}, {"Authorization": "Bearer firs"}, {"Authorization": "first"}):
            response = client.post(CHAT, json=HELLO, headers=given)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert client.get("/metrics", headers=given).status_code == 401
        for key in ("first", "second"):
            assert client.post(CHAT, json=HELLO, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        security = client.get("/openapi.json", headers={"Authorization": "Bearer first"}).json()["components"]
        assert "HTTPBearer" in security["securitySchemes"]


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://localhost:8080", "localhost:8080", 200),
        ("http://127.0.0.1:8080", "127.0.0.1:8080", 200),
        ("http://[::1]:8080", "[::1]:8080", 200),
        ("http://localhost:3000", "localhost:8080", 403),
        ("http://evil.example:8080", "evil.example:8080", 403),  # a name that was pointed at this address
        ("https://chat.example", "127.0.0.1:8080", 200),
        ("https://chat.example.evil", "127.0.0.1:8080", 403),
        ("null", "127.0.0.1:8080", 403),
        ("http://[", "[", 403),
    ],
)
def test_origins(served: Served, origin: str, host: str, status: int) -> None:
    with served.up(origins=["https://chat.example"]) as client:
        response = client.post(CHAT, json=HELLO, headers={"Origin": origin, "Host": host})
        assert response.status_code == status
        allowed = response.headers.get("access-control-allow-origin")
        assert allowed == ("https://chat.example" if origin == "https://chat.example" else None)
    with served.up(origins=["*"]) as client:
        assert client.post(CHAT, json=HELLO, headers={"Origin": origin, "Host": host}).status_code == 200


def test_a_body_that_is_too_large(client: TestClient) -> None:
    large = b"x" * (MAX_BODY + 1)
    for content in (large, iter([large[:9000], large[9000:]])):  # a length that is said, and one that is not
        response = client.post(CHAT, content=content)
        assert response.status_code == 413 and response.json()["error"]["message"].startswith("the body is larger")


# ---- the queue ----


def test_more_than_may_wait_are_sent_away(served: Served) -> None:
    with served.up(max_waiting=1) as client:
        served.llama.gate.clear()
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(client.post(CHAT, json=HELLO).status_code))]
        threads[0].start()
        wait_for(lambda: len(served.llama.prompts) == 1)
        threads += [threading.Thread(target=lambda: answers.append(client.post(CHAT, json=HELLO).status_code))]
        threads[1].start()
        wait_for(lambda: "headkv_waiting 1.0" in client.get("/metrics").text)
        response = client.post(CHAT, json=HELLO)
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "rate_limit_exceeded"
        served.llama.gate.set()
        for thread in threads:
            thread.join(30)
        assert answers == [200, 200]


def wait_for(is_done: Callable[[], bool]) -> None:
    for _ in range(2000):
        if is_done():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never happened")


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_is_broken_off_when_its_client_goes(served: Served, is_stream: bool) -> None:
    served.llama.words = ["word "] * 98
    app = served.app(max_waiting=2)
    body = json.dumps(HELLO | {"stream": is_stream}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("1.2.3.4", 5),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "http_version": "1.1",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }

    async def run() -> None:
        is_gone, sent = asyncio.Event(), asyncio.Queue[dict[str, Any]]()
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if given:
                return given.pop()
            await is_gone.wait()
            return {"type": "http.disconnect"}

        async with app.router.lifespan_context(app):
            served.llama.gate.clear()
            task = asyncio.create_task(app(scope, receive, sent.put))
            while not served.llama.prompts:
                await asyncio.sleep(0.01)
            is_gone.set()
            await asyncio.wait_for(task, 30)
            served.llama.gate.set()

    asyncio.run(run())
    assert served.llama.n_said <= 2


def test_a_failure_is_told_and_the_next_answer_comes(served: Served, client: TestClient) -> None:
    served.llama.fail = NativeError("no memory", -4)
    response = client.post(CHAT, json=HELLO)
    assert response.status_code == 500 and response.json()["error"]["message"] == "no memory"
    served.llama.fail = RuntimeError("a bug with words of the prompt")
    with client.stream("POST", CHAT, json=HELLO | {"stream": True}) as stream:
        assert stream.status_code == 200
        last = [line for line in stream.iter_lines() if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert "words of the prompt" not in last
    assert client.post(CHAT, json=HELLO).status_code == 200


def test_the_server_stops_in_the_middle_of_an_answer(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.llama.words = ["word "] * 98
    served.llama.gate.clear()
    cancel = Job.cancel

    def cancel_and_go_on(job: Job) -> None:
        cancel(job)
        served.llama.gate.set()

    monkeypatch.setattr(Job, "cancel", cancel_and_go_on)
    app = served.app()

    async def ask_and_stop() -> httpx.Response:  # TestClient's loop may end before its response is taken
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            async with app.router.lifespan_context(app):
                asked = asyncio.create_task(client.post(CHAT, json=HELLO))
                while not served.llama.prompts:
                    await asyncio.sleep(0.001)
            return await asked

    answer = asyncio.run(ask_and_stop()).json()
    assert answer["choices"][0]["finish_reason"] is None and answer["usage"]["completion_tokens"] == 0
    assert not any(thread.name == "model" for thread in threading.enumerate())


# ---- what is told ----


def test_metrics(client: TestClient) -> None:
    client.post(CHAT, json=HELLO)
    client.post(CHAT, json=HELLO)
    client.post(CHAT, json={})
    client.get("/some/path")
    text = client.get("/metrics").text
    for line in (
        'headkv_requests_total{path="/v1/chat/completions",status="200"} 2.0',
        'headkv_requests_total{path="/v1/chat/completions",status="400"} 1.0',
        'headkv_requests_total{path="another",status="404"} 1.0',
        'headkv_prompt_tokens_total{how="read"} 8.0',
        'headkv_prompt_tokens_total{how="reused"} 6.0',
        "headkv_generated_tokens_total 10.0",
        "headkv_waiting 0.0",
    ):
        assert line in text, text
    assert "headkv_kv_bytes{" in text


@pytest.mark.parametrize("log_prompts", [False, True])
def test_prompts_are_logged_only_when_asked(
    served: Served, caplog: pytest.LogCaptureFixture, log_prompts: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = {"messages": [{"role": "user", "content": "my secret"}]}
    with served.up(log_prompts=log_prompts) as client:
        client.post(CHAT, json=secret)
        chunks_of(client, CHAT, secret)
        client.post(CHAT, json=secret | {"temperature": "my secret"})
        client.post(TEXT, json={"prompt": "my secret"})
        client.get("/v1/models/my secret")
    log = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith(("pyheadkv", "uvicorn")))
    assert log.count("my secret") == (3 if log_prompts else 0)
    assert log.count("The ferry") == (3 if log_prompts else 0)
    assert "POST /v1/chat/completions 200 after " in log and "GET another 404" in log


# ---- the page ----


def test_the_page_fetches_nothing_from_elsewhere(served: Served) -> None:
    with served.up(keys=(b"key",)) as client:  # it is there without one
        for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
            response = client.get(path)
            assert response.status_code == 200 and response.headers["content-type"] == f"{kind}; charset=utf-8"
            assert "default-src 'none'; script-src 'self'" in response.headers["content-security-policy"]
            assert "http:" not in response.text and "https:" not in response.text
        assert client.get("/headkv/rows").status_code == 401


def test_rows_behind_the_last_answer(served: Served, client: TestClient) -> None:
    assert client.get("/headkv/rows").status_code == 404
    answer = client.post(CHAT, json={"messages": [{"role": "user", "content": "x" * 500}]}).json()
    found = client.get("/headkv/rows").json()
    assert found["answer"] == answer["headkv"]["answer"] == 1
    assert found["layers"] == [0, 1] and found["budget"] == "25%" and found["policy"] == "snapkv"
    n_window = found["n_pos"] - found["n_compressed"]
    assert 480 < found["n_compressed"] < found["n_pos"]
    for rows, places in zip(found["rows"], found["places"], strict=True):
        assert [sum(of_head) + n_window for of_head in places] == rows
        assert all(len(of_head) == 64 and max(of_head) <= found["n_compressed"] // 64 + 1 for of_head in places)
    short = client.post(CHAT, json=HELLO).json()
    found = client.get("/headkv/rows").json()
    assert found["answer"] == short["headkv"]["answer"] == 2 and found["places"] == []
    assert found["rows"] == [[found["n_pos"]] * 2] * 2
