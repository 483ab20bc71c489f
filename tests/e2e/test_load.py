"""Many chats over few documents, several clients at once, and a server that is killed in the middle.

Run when asked: `pytest tests/e2e/test_load.py -m slow -s --load-chats=64`. All of it is on this machine, and the number
of requests is bounded, as each of them is.
"""

from __future__ import annotations

import itertools
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

from tests.e2e.served import ServerProcess, serving

pytestmark = pytest.mark.slow

N_CLIENTS = 8
LIMIT_MIB = 360  # for --fit; the demo's weights are 94 or 138 of it
NUMBERS = (4827, 1359, 7702, 9061, 2648, 5513)  # one of each document
FILLER = "The ferry leaves at nine. It is cold, and the tea in the old harbour is not. "
PLACES = ("stone hut", "red barn", "mill", "chapel", "lighthouse", "boat house")
QUESTIONS = ("What is the secret number of the {}?", "Say the number once more.", "When does the ferry leave?")


def document(which: int) -> str:
    told = f"The secret number of the {PLACES[which]} is {NUMBERS[which]}. "
    return f"Log of the {PLACES[which]}. {FILLER * 10}{told}{FILLER * 4}"


@dataclass
class Seen:
    """What came of all requests."""

    answers: dict[tuple[int, int], list[str]] = field(default_factory=dict)  # by document and turn
    ends: list[float] = field(default_factory=list)  # s, of each request
    errors: list[str] = field(default_factory=list)
    n_retries: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def ask(url: str, messages: list[Any], seen: Seen) -> str:
    """One turn; while the server is away, or sends away, it is asked again."""
    deadline = time.monotonic() + 600
    while True:
        try:
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0) as client:
                reply = client.chat.completions.create(
                    model="any", messages=messages, max_tokens=12, extra_body={"repeat_penalty": 1.0}
                )
            return reply.choices[0].message.content or ""
        except (openai.APIConnectionError, openai.RateLimitError):
            if time.monotonic() > deadline:
                raise
            with seen.lock:
                seen.n_retries += 1
            time.sleep(0.5)


def chat(url: str, which: int, seen: Seen) -> None:
    messages: list[Any] = []
    for turn, question in enumerate(QUESTIONS):
        text = question.format(PLACES[which])
        messages.append({"role": "user", "content": text if turn else f"{document(which)}\n{text}"})
        try:
            answer = ask(url, messages, seen)
        except openai.OpenAIError as error:
            with seen.lock:
                seen.errors.append(repr(error))
            return
        messages.append({"role": "assistant", "content": answer})
        with seen.lock:
            seen.answers.setdefault((which, turn), []).append(answer)
            seen.ends.append(time.monotonic())


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


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_load(library: None, demo_path: Path, request: pytest.FixtureRequest) -> None:
    n_chats, port = request.config.getoption("--load-chats"), free_port()
    options = (
        demo_path,
        "--port",
        port,
        "-c",
        1024,
        "-t",
        1,
        "--temp",
        0,
        "--fit",
        f"{LIMIT_MIB}MiB",
        "--budget",
        "25%",
    )
    seen, n_turns, start = Seen(), n_chats * len(QUESTIONS), time.monotonic()
    url, pid = f"http://127.0.0.1:{port}", [0]
    with ThreadPoolExecutor(N_CLIENTS) as pool, sampled(pid) as memory:
        with serving(*options) as server:
            pid[0] = server.process.pid
            documents = itertools.islice(itertools.cycle(range(len(NUMBERS))), n_chats)
            jobs = [pool.submit(chat, url, which, seen) for which in documents]
            while len(seen.ends) < n_turns // 2 and not seen.errors:
                time.sleep(0.2)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
        with serving(*options) as again:
            pid[0] = again.process.pid
            for job in jobs:
                job.result()
            assert_the_server_is_well(again)
    report(seen, memory, start)
    assert seen.errors == [] and len(seen.ends) == n_turns
    for (which, _), answers in seen.answers.items():
        others = {str(number) for i, number in enumerate(NUMBERS) if i != which}
        assert not [answer for answer in answers if any(other in answer for other in others)], "mixed up"
    assert max(memory) <= LIMIT_MIB * 1024
    assert speed(seen.ends[len(seen.ends) // 2 :]) > 0.5 * speed(seen.ends[: len(seen.ends) // 2])


def assert_the_server_is_well(server: ServerProcess) -> None:
    assert server.process.poll() is None
    assert not [line for line in server.log if "Traceback" in line or " 500 " in line]


def speed(ends: list[float]) -> float:
    """Requests a second."""
    return (len(ends) - 1) / max(1e-9, max(ends) - min(ends))


def report(seen: Seen, memory: list[int], start: float) -> None:
    half = len(seen.ends) // 2
    found = [str(NUMBERS[which]) in it for (which, turn), said in seen.answers.items() if turn < 2 for it in said]
    same = [answers.count(statistics.mode(answers)) / len(answers) for answers in seen.answers.values()]
    print(
        f"\n{len(seen.ends)} answers in {time.monotonic() - start:.0f} s, {len(seen.errors)} errors, {seen.n_retries} "
        f"tries again; own number in {sum(found)} of {len(found)}, {100 * statistics.mean(same):.0f} % said alike; "
        f"memory at most {max(memory) / 1024:.0f} MiB of {LIMIT_MIB}; "
        f"{speed(seen.ends[:half]):.2f} then {speed(seen.ends[half:]):.2f} requests a second"
    )
