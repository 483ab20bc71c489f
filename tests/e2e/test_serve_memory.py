"""`serve --memory`: chats that take turns, a server that is killed, another that is started, texts in the folder."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest

from pyheadkv.capsule.reader import read_contents
from pyheadkv.chat.sampling import Sampling
from pyheadkv.chat.session import HeadKV, load
from pyheadkv.errors import UsageError
from pyheadkv.server import memory
from pyheadkv.server.answer import Question
from pyheadkv.server.conversations import Conversations
from pyheadkv.server.errors import ApiError
from pyheadkv.server.folder import Folder
from pyheadkv.server.memory import MemoryLimit
from pyheadkv.server.model import Model
from pyheadkv.server.requests import ChatRequest
from tests import architectures
from tests.e2e.served import ENV, serving
from tests.e2e.test_serve import GREEDY, N_CTX, PLAIN, QUESTIONS, hidden, metric, turns_in_python

NUMBERS = (4827, 1359, 7702)
N_NEW = 60  # tokens of an answer and the next question, at the most


class Chat:
    """A conversation with a server, as clients have it: all messages are sent each time."""

    def __init__(self, first: str) -> None:
        self.questions = [first, *QUESTIONS[1:]]
        self.messages: list[Any] = []

    @property
    def answers(self) -> list[str]:
        return [message["content"] for message in self.messages[1::2]]

    def ask(self, client: openai.OpenAI) -> int:
        """The next turn; gives the tokens that were read."""
        question = self.questions[len(self.messages) // 2]
        self.messages.append({"role": "user", "content": question})
        reply = client.chat.completions.create(model="demo", messages=self.messages, **GREEDY, **PLAIN)
        self.messages.append({"role": "assistant", "content": reply.choices[0].message.content})
        assert reply.usage and reply.usage.prompt_tokens_details
        return reply.usage.prompt_tokens - (reply.usage.prompt_tokens_details.cached_tokens or 0)


def kept(folder: Path) -> list[int]:
    """Tokens that have rows, of each file."""
    return sorted(read_contents(path).n_rows for path in folder.glob("*.hkv"))


def test_chats_that_take_turns(library: None, demo_path: Path, tmp_path: Path) -> None:
    """Each reads only what is new, also when the server was killed, and answers as if it were alone."""
    options = (demo_path, "-c", N_CTX, "-t", "1", "--budget", "25%", "--memory", tmp_path / "chats")
    chats = [Chat(hidden(number)) for number in NUMBERS]
    with serving(*options) as server:
        client = server.client()
        first, *others = (chat.ask(client) for chat in chats)
        assert first > 250 and all(N_NEW < n < 150 for n in others)  # they begin alike, up to the number
        assert all(0 < n < N_NEW for n in [chat.ask(client) for chat in chats])
        assert metric(server, "headkv_conversations ") == 3
        assert metric(server, "headkv_conversations_loaded") >= 3
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    assert len(kept(tmp_path / "chats")) == 3
    with serving(*options) as again:
        assert any("3 conversations in" in line for line in again.log)
        client = again.client()
        assert all(0 < n < N_NEW for n in [chat.ask(client) for chat in reversed(chats)])
        assert len(kept(tmp_path / "chats")) == 3
        assert again.stop() == 143
    assert chats[0].answers == turns_in_python(demo_path, chats[0].questions, budget="25%")
    for chat, number in zip(chats, NUMBERS, strict=True):
        assert str(number)[:3] in chat.answers[0], chat.answers  # as far as an answer goes


def test_a_text_that_was_put_there(library: None, demo_path: Path, tmp_path: Path) -> None:
    book, text = tmp_path / "book.hkv", tmp_path / "log.txt"
    text.write_text(hidden(4827).rpartition("\n")[0])
    command = [sys.executable, "-m", "pyheadkv.cli.app", "ingest", demo_path, "-f", text, "-o", book, "-c", "1024"]
    subprocess.run([*map(str, command), "-t", "1"], env=ENV, check=True, capture_output=True)
    before = book.read_bytes()
    with serving(demo_path, "-c", N_CTX, "-t", "1", "--budget", "25%", "--memory", tmp_path) as server:
        shown = read_contents(book)
        messages = [*shown.messages]
        messages.append({"role": "user", "content": "\n".join([*shown.attachments, QUESTIONS[0].rpartition("\n")[2]])})
        reply = server.client().chat.completions.create(
            model="demo", messages=messages, max_tokens=14, temperature=0, **PLAIN
        )  # type: ignore[call-overload]
        assert "482" in reply.choices[0].message.content
        n_read = reply.usage.prompt_tokens - reply.usage.prompt_tokens_details.cached_tokens
        assert 0 < n_read < N_NEW
    assert book.read_bytes() == before and len(kept(tmp_path)) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--archive", "none"), "--memory needs an archive"),
        (("--no-sweep",), "--memory needs an archive"),
        (("--memory-size", "many"), "--memory-size"),
        (("--limit-memory", "10%"), "--limit-memory is '10%', expected a size"),
        (("--limit-memory", "1GiB", "--fit", "1GiB"), "give one of both"),
        (("--limit-memory", "100MiB"), "nothing fits into 87 MiB"),
    ],
)
def test_refused_before_the_model_is_loaded(
    demo_path: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    command = [sys.executable, "-m", "pyheadkv.cli.app", "serve", demo_path, "--memory", tmp_path / "m", *options]
    done = subprocess.run([*map(str, command)], env=ENV, check=False, capture_output=True, text=True)
    assert done.returncode == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("arch", "budget"), [("gemma3", "full"), ("jamba", "25%")])
def test_a_model_whose_rows_are_not_all_of_a_conversation(
    library: None, tmp_path: Path, arch: str, budget: str
) -> None:
    llama: Any = load(architectures.write(tmp_path / "model.gguf", arch), n_ctx=512, n_threads=1)
    refused = pytest.raises(UsageError, match=r"--memory .*: .*sliding windows or recurrent states")
    with closing(llama), HeadKV(llama, policy="snapkv", budget=budget) as headkv, refused:
        Conversations(headkv, Folder(tmp_path, 1), print)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_prompt_that_reaches_the_limit_of_memory(
    library: None, demo_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped in its middle, the cache is emptied, and both that prompt and what was saved can be asked again."""
    monkeypatch.setattr(memory, "_LOOK_SECONDS", 0)
    llama: Any = load(demo_path, n_ctx=N_CTX, n_threads=1)
    with closing(llama), HeadKV(llama, budget="25%") as headkv:
        folder = Folder(tmp_path, 1 << 30)
        model = Model(
            headkv,
            "demo",
            Sampling(temp=0, max_tokens=8),
            conversations=Conversations(headkv, folder, pytest.fail),
            limit=MemoryLimit(1 << 40, "1TiB"),
        )
        first, other = (model.ask_chat(chat_request(hidden(number))) for number in NUMBERS[:2])
        expected = answered(model, first)
        answered(model, other)
        monkeypatch.setattr(memory, "resident", lambda: 1 << (41 if headkv.native.stats().n_pos > 200 else 30))
        with pytest.raises(ApiError, match=r"more than the .* MiB that --limit-memory 1TiB allows"):
            answered(model, model.ask_chat(chat_request(hidden(9061))))
        assert headkv.native.stats().n_pos == llama.n_tokens == 0 and folder.n_kept == 2
        monkeypatch.undo()
        assert answered(model, first) == expected
        assert headkv.stats().n_read < N_NEW


def chat_request(text: str) -> ChatRequest:
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": text}]})


def answered(model: Model, question: Question) -> str:
    """As the worker has it answered."""
    try:
        answer = model.answer(question, lambda: False, lambda done, total: None)
        text = "".join(piece.text for piece in answer.pieces())
        model.check_memory()
        return text
    finally:
        model.keep(question)


def test_two_servers_in_one_folder(library: None, demo_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pyheadkv.cli.app", "serve", demo_path, "--memory", tmp_path, "--port", "0"]
    with serving(demo_path, "-c", "512", "-t", "1", "--memory", tmp_path):
        done = subprocess.run([*map(str, command)], env=ENV, check=False, capture_output=True, text=True)
    assert done.returncode == 1 and "used by another server" in done.stderr
