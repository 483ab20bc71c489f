"""Programs that others wrote, on the demo model with its whole cache, beside stock: LangChain, llm, OpenAI's client."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llm import UnknownModelError, get_model
from pydantic import BaseModel, Field

from pyheadkv import __version__
from pyheadkv.chat import demo
from pyheadkv.chat.conversation import Conversation
from pyheadkv.chat.session import HeadKV, load
from pyheadkv.errors import BudgetError, UsageError
from pyheadkv.llm_plugin import HeadKVModel
from tests.e2e.served import ENV, ROOT, ServerProcess, serving

N_CTX = 1024
SYSTEM = "Answer briefly."
QUESTIONS = ["What is the capital of France?", "And of Italy?", "Which of both is on the Tiber?"]


@pytest.fixture(scope="module")
def server(library: None, demo_path: Path) -> Iterator[ServerProcess]:
    with serving(demo_path, "-c", N_CTX, "-t", "1", "--budget", "full") as running:
        yield running


@pytest.fixture(scope="module")
def stock(library: None, demo_path: Path) -> Iterator[Any]:
    """llama-cpp-python as it is."""
    llama: Any = load(demo_path, n_ctx=N_CTX, n_threads=1)
    yield llama
    llama.close()


def stock_turns(llama: Any, system: str, repeat_penalty: float) -> list[str]:
    messages = [{"role": "system", "content": system}]
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        reply = llama.create_chat_completion(messages, temperature=0, max_tokens=12, repeat_penalty=repeat_penalty)
        messages.append(reply["choices"][0]["message"])
    return [message["content"] for message in messages[2::2]]


# ---- LangChain ----


class Weather(BaseModel):
    """Weather of a city."""

    city: str = Field(max_length=12)
    is_cold: bool


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"cold in {city}"


@pytest.fixture
def langchain(server: ServerProcess) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{server.url}/v1",
        api_key="none",  # type: ignore[arg-type]
        model="demo",
        temperature=0,
        max_completion_tokens=12,
        extra_body={"repeat_penalty": 1.0},
        max_retries=0,
    )


@pytest.mark.parametrize("is_stream", [False, True])
def test_turns_of_langchain_equal_stock(langchain: ChatOpenAI, stock: Any, is_stream: bool) -> None:
    messages: list[BaseMessage] = [SystemMessage(SYSTEM)]
    for question in QUESTIONS:
        messages.append(HumanMessage(question))
        if is_stream:
            text = "".join(str(chunk.content) for chunk in langchain.stream(messages))
            messages.append(AIMessage(text))
        else:
            reply = langchain.invoke(messages)
            assert reply.usage_metadata and reply.usage_metadata["output_tokens"] <= 12
            messages.append(reply)
    assert [message.content for message in messages[2::2]] == stock_turns(stock, SYSTEM, 1.0)


def test_langchain_has_a_structure_and_a_tool_filled_in(langchain: ChatOpenAI) -> None:
    wide = langchain.model_copy(update={"max_tokens": 60})
    for method in ("json_schema", "function_calling"):
        found = wide.with_structured_output(Weather, method=method).invoke("Is it cold in Oslo?")  # type: ignore[arg-type]
        assert isinstance(found, Weather), method
    call = wide.bind_tools([weather], tool_choice="weather").invoke("How is the weather in Oslo?").tool_calls[0]
    assert call["name"] == "weather" and isinstance(call["args"]["city"], str)
    answer = wide.bind_tools([weather]).invoke(
        [
            HumanMessage("How is the weather in Oslo?"),
            AIMessage("", tool_calls=[call]),
            weather.invoke(call),
            HumanMessage("Say it again."),
        ]
    )
    assert answer.content


# ---- OpenAI's client ----


def test_eight_at_once_equal_stock(server: ServerProcess, stock: Any) -> None:
    asked = [f"The number is {1357 + 1111 * i}. Say the number." for i in range(8)]
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 12}

    def answer(text: str) -> str:
        messages: Any = [{"role": "user", "content": text}]
        with server.client() as client:
            reply = client.chat.completions.create(
                model="demo", messages=messages, extra_body={"repeat_penalty": 1.0}, **options
            )
        return reply.choices[0].message.content or ""

    def stock_answer(text: str) -> str:
        messages = [{"role": "user", "content": text}]
        reply = stock.create_chat_completion(messages, repeat_penalty=1.0, **options)
        return str(reply["choices"][0]["message"]["content"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, asked)) == list(map(stock_answer, asked))


# ---- llm ----


@pytest.fixture(scope="module")
def llm_env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which this package is installed, with its entry points, as far as llm can tell."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / f"pyheadkv-{__version__}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pyheadkv\nVersion: {__version__}\n")
    found = re.search(
        r"\[project\.entry-points\.llm\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), flags=re.DOTALL
    )
    assert found
    (info / "entry_points.txt").write_text(f"[llm]\n{found[1]}\n".replace('"', ""))
    return ENV | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "LLM_USER_PATH": str(folder / "user")}


def llm(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llm", *arguments], env=env, capture_output=True, text=True, check=False
    )


def test_turns_of_llm_equal_stock(stock: Any, demo_path: Path) -> None:
    settings: dict[str, Any] = {
        "gguf": str(demo_path),
        "n_ctx": N_CTX,
        "n_threads": 1,
        "temp": 0,
        "n_predict": 12,
        "budget": "full",
    }
    talk = HeadKVModel().conversation()
    replies = []
    for question in QUESTIONS:
        replies.append(talk.prompt(question, **settings))
        replies[-1].text()  # it is asked now
    assert [reply.text() for reply in replies] == stock_turns(stock, demo.SYSTEM, demo.SAMPLING.repeat_penalty)
    assert all(reply.output_tokens in range(1, 13) for reply in replies)
    assert [reply.response_json["kv"]["bytes_full"] > 0 for reply in replies] == [True] * 3


def test_llm_finds_the_model_by_its_entry_point(library: None, demo_path: Path, llm_env: dict[str, str]) -> None:
    with pytest.raises(UnknownModelError):
        get_model("pyheadkv")  # is not installed here
    settings = {"gguf": demo_path, "n_ctx": N_CTX, "n_threads": 1, "n_predict": 12, "budget": "10%"}
    options = [word for name, value in settings.items() for word in ("-o", name, str(value))]
    first = llm(llm_env, "-m", "pyheadkv", *options, QUESTIONS[0])
    assert (first.returncode, first.stderr) == (0, "") and "Paris" in first.stdout
    second = llm(llm_env, "-c", *options, "Name its river.")
    assert second.returncode == 0 and "France" in second.stdout, second.stderr  # of the turn before
    (log,) = json.loads(llm(llm_env, "logs", "-n", "1", "--json").stdout)
    assert log["model"] == "pyheadkv" and log["options_json"]["budget"] == "10%" and log["output_tokens"] > 1
    refused = llm(llm_env, "-m", "pyheadkv", "-o", "budget", "0%", "hello")
    assert (refused.returncode, refused.stderr) == (1, "Error: budget 0% must be above 0\n")


def test_llm_begins_with_a_file(library: None, demo_path: Path, tmp_path: Path) -> None:
    """As a chat does that begins with it, turn by turn; another conversation begins with it as well."""
    text, path = tmp_path / "log.txt", tmp_path / "log.hkv"
    text.write_text("The ferry leaves at nine. It is cold. " * 20 + "The secret number of the mill is 7702.")
    command = ["ingest", demo_path, "-f", text, "-o", path, "-c", N_CTX, "-t", "1", "-sys", demo.SYSTEM]
    subprocess.run([sys.executable, "-m", "pyheadkv.cli.app", *map(str, command)], env=ENV, check=True)
    asked = ["What is the secret number of the mill?", "When does the ferry leave?"]
    with closing(load(demo_path, n_ctx=N_CTX, n_threads=1)) as llama, HeadKV(llama, budget="25%") as headkv:
        chat = Conversation(headkv, None, demo.SAMPLING.having({"temp": 0, "n-predict": 12}))
        chat.load(path, is_shared=True)
        expected = ["".join(chat.answer(question)) for question in asked]
    settings: dict[str, Any] = {"gguf": str(demo_path), "memory": str(path), "budget": "25%", "n_ctx": N_CTX}
    settings |= {"n_threads": 1, "temp": 0, "n_predict": 12}
    model = HeadKVModel()
    for _ in range(2):
        talk = model.conversation()
        for question, answer in zip(asked, expected, strict=True):
            assert talk.prompt(question, **settings).text() == answer
            assert model._conversation and model._conversation.headkv.stats().n_read < 80
    with pytest.raises(UsageError, match="ingest -sys"):
        model.prompt("Hello", system="Be brief.", **settings).text()


def test_llm_loads_another_model_when_settings_change(library: None, demo_path: Path) -> None:
    model = HeadKVModel()
    settings: dict[str, Any] = {"gguf": str(demo_path), "n_ctx": N_CTX, "n_threads": 1, "temp": 0, "n_predict": 4}
    assert model.prompt("Hello", budget="full", **settings).text()
    with pytest.raises(BudgetError):
        model.prompt("Hello", budget="1", **settings).text()
    assert model.prompt("Hello", budget="10%", **settings).text()
