"""Many chats over few documents, several clients at once, and a server that is killed in the middle.

A few of them in every run; more when asked: `pytest tests/e2e/test_load.py -m slow -s --load-chats=64`. All of it is on
this machine, and the number of requests is bounded, as each of them is.
"""

from __future__ import annotations

import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from pyheadkv.capsule.reader import read_contents
from pyheadkv.chat.session import load
from tests.e2e.served import ServerProcess, serving

N_CLIENTS = 8
LIMIT_MIB = 384  # the demo's weights are 94 or 138 of it
N_CTX = 2048
N_NEW = 100  # tokens of an answer and a question, and more
NUMBERS = (4827, 1359, 7702, 9061, 2648, 5513)  # one of each document
FILLER = "The ferry leaves at nine. It is cold, and the tea in the old harbour is not. "
PLACES = ("stone hut", "red barn", "mill", "chapel", "lighthouse", "boat house")
QUESTIONS = ("Say the number once more.", "When does the ferry leave?")


def document(which: int) -> str:
    told = f"The secret number of the {PLACES[which]} is {NUMBERS[which]}. "
    return f"Log of the {PLACES[which]}. {FILLER * 10}{told}{FILLER * 4}"


@dataclass
class Seen:
    """What came of all requests."""

    messages: dict[int, list[dict[str, str]]] = field(default_factory=dict)  # by chat
    n_read: list[tuple[int, int]] = field(default_factory=list)  # turn, tokens that were read for it
    ends: list[float] = field(default_factory=list)  # s, of each request
    errors: list[str] = field(default_factory=list)
    n_retries: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answers(self, which: int) -> list[str]:
        """Of all chats about a document."""
        return [
            message["content"]
            for number, messages in self.messages.items()
            if number % len(NUMBERS) == which
            for message in messages[1::2]
        ]


def ask(url: str, messages: list[Any], seen: Seen) -> Any:
    """One turn; while the server is away, or sends away, it is asked again."""
    deadline = time.monotonic() + 600
    while True:
        try:
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0) as client:
                return client.chat.completions.create(
                    model="any", messages=messages, max_tokens=16, extra_body={"repeat_penalty": 1.0}
                )
        except (openai.APIConnectionError, openai.RateLimitError):
            if time.monotonic() > deadline:
                raise
            with seen.lock:
                seen.n_retries += 1
            time.sleep(0.5)


def chat(url: str, number: int, n_turns: int, seen: Seen) -> None:
    which = number % len(NUMBERS)
    first = f"{document(which)}{visitor(number)}\nWhat is the secret number of the {PLACES[which]}?"
    messages = seen.messages[number] = []
    for turn in range(n_turns):
        messages.append({"role": "user", "content": QUESTIONS[turn % 2] if turn else first})
        try:
            reply = ask(url, messages, seen)
        except openai.OpenAIError as error:
            with seen.lock:
                seen.errors.append(repr(error))
            return
        messages.append({"role": "assistant", "content": reply.choices[0].message.content or ""})
        with seen.lock:
            seen.n_read.append((turn, reply.usage.prompt_tokens - reply.usage.prompt_tokens_details.cached_tokens))
            seen.ends.append(time.monotonic())


def visitor(number: int) -> str:
    """Every chat has words that no other one has."""
    return f"Visitor {number} was here."


@contextmanager
def sampled(pid: list[int]) -> Iterator[list[int]]:
    """KiB of the process that is `pid[0]` at the time, twice a second."""
    found: list[int] = []
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(0.5):
            try:
                status = Path(f"/proc/{pid[0]}/status").read_text()
            except OSError:
                continue
            if "VmRSS:" in status:
                found.append(int(status.partition("VmRSS:")[2].split()[0]))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@linux
def test_some_chats(library: None, demo_path: Path, tmp_path: Path) -> None:
    run_chats(demo_path, tmp_path, n_chats=7, n_turns=2)


@linux
@pytest.mark.slow
def test_load(library: None, demo_path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    n_chats, n_turns = (request.config.getoption(f"--load-{what}") for what in ("chats", "turns"))
    seen = run_chats(demo_path, tmp_path, n_chats, n_turns)
    half = len(seen.ends) // 2
    assert speed(seen.ends[half:]) > 0.5 * speed(seen.ends[:half])


def run_chats(model: Path, folder: Path, n_chats: int, n_turns: int) -> Seen:
    """All chats, and what must hold of them."""
    seen, n_requests, start = Seen(), n_chats * n_turns, time.monotonic()
    port, pid = free_port(), [0]
    sizes = ("--limit-memory", f"{LIMIT_MIB}MiB", "--memory", folder, "-c", N_CTX, "--budget", "25%")
    options = (model, "--port", port, "-t", 1, "--temp", 0, *sizes)
    url = f"http://127.0.0.1:{port}"
    with ThreadPoolExecutor(N_CLIENTS) as pool, sampled(pid) as memory:
        with serving(*options) as server:
            pid[0] = server.process.pid
            jobs = [pool.submit(chat, url, number, n_turns, seen) for number in range(n_chats)]
            while len(seen.ends) < n_requests // 2 and not seen.errors:
                time.sleep(0.2)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
        with serving(*options) as again:
            pid[0] = again.process.pid
            for job in jobs:
                job.result()
            assert_the_server_is_well(again)
    report(seen, memory, start)
    assert seen.errors == [] and len(seen.ends) == n_requests
    for which in range(len(NUMBERS)):
        others = {str(number) for i, number in enumerate(NUMBERS) if i != which}
        assert not [answer for answer in seen.answers(which) if any(other in answer for other in others)], "mixed up"
    lost = [n for turn, n in seen.n_read if turn and n >= N_NEW]
    assert len(lost) <= 1, f"chats were lost: {lost}"  # the one whose answer was being saved when the server was killed
    assert_all_chats_are_kept(model, folder, seen)
    assert max(memory) <= LIMIT_MIB * 1024
    return seen


def assert_all_chats_are_kept(model: Path, folder: Path, seen: Seen) -> None:
    """Each in a file of its own, up to the last question; a server that was killed may have left one more."""
    vocabulary: Any = load(model, n_ctx=64, n_threads=1)
    texts = [vocabulary.detokenize(read_contents(path).tokens.tolist()).decode() for path in folder.glob("*.hkv")]
    vocabulary.close()
    assert seen.messages.keys() == set(range(len(seen.messages))) and len(texts) <= len(seen.messages) + 1
    for number, messages in seen.messages.items():
        (text,) = [text for text in texts if all(message["content"] in text for message in messages[:-1])]
        assert visitor(number) in text


def assert_the_server_is_well(server: ServerProcess) -> None:
    assert server.process.poll() is None
    assert not [line for line in server.log if "Traceback" in line or " 500 " in line]


def speed(ends: list[float]) -> float:
    """Requests a second."""
    return (len(ends) - 1) / max(1e-9, max(ends) - min(ends))


def report(seen: Seen, memory: list[int], start: float) -> None:
    half = len(seen.ends) // 2
    found = [str(number) in answer for which, number in enumerate(NUMBERS) for answer in seen.answers(which)[:2]]
    later = [n for turn, n in seen.n_read if turn]
    print(
        f"\n{len(seen.ends)} answers in {time.monotonic() - start:.0f} s, {len(seen.errors)} errors, {seen.n_retries} "
        f"tries again; own number in {sum(found)} of {len(found)}; {statistics.mean(later):.0f} tokens read for a "
        f"later turn, {max(later)} at most; memory at most {max(memory) / 1024:.0f} MiB of {LIMIT_MIB}; "
        f"{speed(seen.ends[:half]):.2f} then {speed(seen.ends[half:]):.2f} requests a second"
    )
