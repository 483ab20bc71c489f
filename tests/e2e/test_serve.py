"""The server as programs meet it: OpenAI's own client on the demo model, beside the same chats in Python."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from pyheadkv.chat.session import HeadKV, load
from tests.e2e.served import TIMEOUT_S, ServerProcess, serving

N_CTX = 2048
# servers have one thread: two programs at once, with as many as there are CPUs each, wait for each other
DOCUMENT = "The ferry leaves at nine. It is cold, and the tea in the old harbour is not. " * 11
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
PLAIN: dict[str, Any] = {"extra_body": {"repeat_penalty": 1.0}}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "is_cold": {"type": "boolean"}},
    "required": ["city", "is_cold"],
    "additionalProperties": False,
}


def hidden(number: int) -> str:
    told = f"{DOCUMENT}The secret number of the stone hut is {number}. {DOCUMENT[:150]}"
    return f"{told}\nWhat is the secret number of the stone hut?"


@pytest.fixture(scope="module")
def server(library: None, demo_path: Path) -> Iterator[ServerProcess]:
    with serving(demo_path, "-c", N_CTX, "-t", "1", "--budget", "25%") as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> openai.OpenAI:
    return server.client()


def ask(client: openai.OpenAI, text: str, **options: Any) -> Any:
    return client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": text}], **(GREEDY | PLAIN | options)
    )


def metric(server: ServerProcess, name: str) -> float:
    text = urllib.request.urlopen(f"{server.url}/metrics", timeout=TIMEOUT_S).read().decode()
    return next(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def turns_in_python(path: Path, questions: list[str], **options: Any) -> list[str]:
    """The same chat without a server: with HeadKV where it has options, else stock."""
    llama: Any = load(path, n_ctx=N_CTX, n_threads=1)
    headkv = HeadKV(llama, **options) if options else None
    messages: list[dict[str, str]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        reply = llama.create_chat_completion(messages, temperature=0, max_tokens=8, repeat_penalty=1.0)
        messages.append(reply["choices"][0]["message"])
    if headkv:
        assert headkv.is_compressed
        headkv.close()
    llama.close()
    return [message["content"] for message in messages[1::2]]


def turns_of_client(client: openai.OpenAI, questions: list[str], *, stream: bool) -> list[str]:
    messages: list[Any] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        if stream:
            chunks = client.chat.completions.create(model="demo", messages=messages, stream=True, **GREEDY, **PLAIN)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        else:
            reply = client.chat.completions.create(model="demo", messages=messages, **GREEDY, **PLAIN)
            text = reply.choices[0].message.content or ""
        messages.append({"role": "assistant", "content": text})
    return [message["content"] for message in messages[1::2]]


QUESTIONS = [hidden(4827), "When does the ferry leave?", "And what is cold?"]


def test_turns_equal_those_in_python(server: ServerProcess, client: openai.OpenAI, demo_path: Path) -> None:
    expected = turns_in_python(demo_path, QUESTIONS, budget="25%")
    assert turns_of_client(client, QUESTIONS, stream=False) == expected
    # another text, with no token in common: batches of other sizes would give other roundings
    client.completions.create(model="demo", prompt="Once", max_tokens=1)
    read = metric(server, 'headkv_prompt_tokens_total{how="read"}')
    assert turns_of_client(client, QUESTIONS, stream=True) == expected
    assert metric(server, 'headkv_prompt_tokens_total{how="read"}') - read < 600  # later turns go on
    assert metric(server, 'headkv_kv_bytes{which="measured"}') < metric(server, 'headkv_kv_bytes{which="whole"}')


def test_a_whole_cache_answers_as_stock_does(library: None, demo_path: Path) -> None:
    expected = turns_in_python(demo_path, QUESTIONS)
    with serving(demo_path, "-c", N_CTX, "-t", "1", "--budget", "full") as server:
        client = server.client()
        assert turns_of_client(client, QUESTIONS, stream=False) == expected
        text = "The old harbour is"
        llama: Any = load(demo_path, n_ctx=N_CTX, n_threads=1)
        stock = llama.create_completion(text, temperature=0, max_tokens=8, repeat_penalty=1.0)["choices"][0]["text"]
        llama.close()
        assert client.completions.create(model="demo", prompt=text, **GREEDY, **PLAIN).choices[0].text == stock
        assert server.stop(signal.SIGINT) == 130


def test_eight_at_once_are_not_mixed_up(client: openai.OpenAI) -> None:
    numbers = [1357 + 1111 * i for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        asked = pool.map(lambda n: ask(client, f"The number is {n}. What is the number?"), numbers)
        answers = [reply.choices[0].message.content for reply in asked]
    assert [str(number) in answer for number, answer in zip(numbers, answers, strict=True)] == [True] * 8, answers


def test_log_probabilities(client: openai.OpenAI) -> None:
    reply = ask(client, "Say hello.", logprobs=True, top_logprobs=3, max_tokens=4)
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens == 4
    assert b"".join(bytes(item.bytes) for item in content).decode() == reply.choices[0].message.content
    for item in content:
        values = [top.logprob for top in item.top_logprobs]
        assert item.token == item.top_logprobs[0].token  # greedy
        assert values == sorted(values, reverse=True) and -20 < values[0] <= 0


def test_a_json_schema(client: openai.OpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    reply = ask(client, "Is it cold in Oslo?", response_format=schema, max_tokens=60)
    found = json.loads(reply.choices[0].message.content)
    assert reply.choices[0].finish_reason == "stop"
    assert found.keys() == {"city", "is_cold"} and isinstance(found["is_cold"], bool)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_tool(client: openai.OpenAI, is_stream: bool) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
    choice = {"type": "function", "function": {"name": "weather"}}
    reply = ask(client, "Is it cold in Oslo?", tools=[tool], tool_choice=choice, max_tokens=60, stream=is_stream)
    if is_stream:
        calls = [chunk.choices[0].delta.tool_calls for chunk in reply]
        functions = [call[0].function for call in calls if call]
        name, arguments = functions[0].name, "".join(function.arguments or "" for function in functions)
    else:
        assert reply.choices[0].finish_reason == "tool_calls"
        function = reply.choices[0].message.tool_calls[0].function
        name, arguments = function.name, function.arguments
    assert name == "weather" and json.loads(arguments).keys() == {"city", "is_cold"}


@pytest.mark.parametrize("value", ["\U0001f600 é", "back\\slash\0", 5, None])
def test_a_schema_of_one_value(client: openai.OpenAI, value: object) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": value}}}
    reply = ask(client, "Hello", response_format=schema, max_tokens=30)
    assert json.loads(reply.choices[0].message.content) == value


BAD_SCHEMAS = {
    "no type": {"type": "wizard"},
    "no alternative": {"enum": []},
    "remote": {"$ref": "https://example.org/schema.json"},
    "repeated": {"type": "string", "minLength": 10**9},
    "nested": {"type": "string", "pattern": "^(((x{50}){50}){50}){50}$"},
    "no such character": {"type": "string", "pattern": "^[z-a]$"},
    "no character at all": {"type": "string", "pattern": "^[^\\x00-\\U0010ffff]$"},
    "broken": {"type": "string", "pattern": "^(((($"},
    "circle": {"$ref": "#/a", "a": {"$ref": "#/a"}},
    "left recursion": {"type": "string", "pattern": "^(|a)*$"},
    "large": {"enum": ["x" * 70_000]},
    "numbers": {"properties": 5, "required": 7},
}


@pytest.mark.parametrize("name", BAD_SCHEMAS)
def test_a_schema_that_cannot_be_followed_is_the_clients_fault(
    server: ServerProcess, client: openai.OpenAI, name: str
) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": BAD_SCHEMAS[name]}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "Hello", response_format=schema, max_tokens=8)
    assert "JSON schema" in str(caught.value.body) and server.process.poll() is None
    assert ask(client, "Hello", max_tokens=1).choices


def test_a_client_that_goes_away_frees_the_model(server: ServerProcess, client: openai.OpenAI) -> None:
    before = metric(server, "headkv_generated_tokens_total")
    stream = ask(client, "Count to a thousand.", stream=True, max_tokens=1000)
    for _ in range(3):
        next(stream)
    stream.close()
    impatient = server.client(timeout=0.05)
    with pytest.raises(openai.APITimeoutError):
        ask(impatient, hidden(1234))
    assert ask(client, "Say hello.", max_tokens=1).choices
    assert metric(server, "headkv_generated_tokens_total") - before < 300
    assert metric(server, "headkv_waiting") == 0


def test_errors_of_openais_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "word " * N_CTX)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    (card,) = client.models.list().data
    assert client.models.retrieve(card.id).id == card.id


def raw(server: ServerProcess) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=TIMEOUT_S)


def test_slow_and_half_closed_connections_hold_nobody_up(server: ServerProcess, client: openai.OpenAI) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": hidden(2222)}], "max_tokens": 50}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    slow, half, broken, dropped = raw(server), raw(server), raw(server), raw(server)
    slow.sendall(whole[:-10])  # never comes to an end
    half.sendall(whole)
    half.shutdown(socket.SHUT_WR)
    broken.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
    dropped.sendall(whole)
    dropped.close()
    assert ask(client, "Say hello.", max_tokens=2).choices
    assert metric(server, "headkv_waiting") == 0
    for connection in (slow, half, broken):
        connection.close()
    assert ask(client, "Say hello.", max_tokens=2).choices


def test_keys_of_a_file(library: None, demo_path: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# ours\nsecret-key\n")
    with serving(demo_path, "-c", "512", "--api-key-file", keys) as server:
        with pytest.raises(openai.AuthenticationError):
            server.client().models.list()
        client = server.client(api_key="secret-key")
        stream = ask(client, "Tell me a story.", stream=True, max_tokens=16)
        next(stream)
        server.process.send_signal(signal.SIGTERM)  # the answer ends first
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] in ("stop", "length")
        assert server.process.wait(TIMEOUT_S) == 143
        assert "secret-key" not in "".join(server.log)
