"""The command as a user runs it, on the demo model: one answer as JSON, a chat on a terminal, and what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from pyheadkv.chat.demo import QUESTION
from pyheadkv.engine.sources import DEMO_FAST_GGUF, resolve_model
from pyheadkv.errors import ModelError

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "pyheadkv.cli.app"]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"}
PROMPT_IS_READY = "\x1b[?2004h"  # bracketed paste is on; keys pressed before go to the terminal, not to the prompt
TIMEOUT_S = 150  # of one step, on a machine that does other things too
DOCUMENT = "The ferry leaves at nine. It is cold, and the tea in the old harbour is not. " * 16


@pytest.fixture(scope="module")
def demo() -> str:
    try:
        path = resolve_model("demo")
        assert path.name == DEMO_FAST_GGUF
        return str(path)
    except ModelError as error:
        pytest.skip(f"no demo model: {error}")


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "ferry.txt"
    path.write_text(DOCUMENT + "The secret number is 7361. " + DOCUMENT[:300])
    return path


def run(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=ENV, timeout=TIMEOUT_S, check=False)


def answer_json(*arguments: str | Path, stdin: str = "") -> dict[str, Any]:
    done = run("chat", *arguments, "-st", "--temp", "0", "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_one_answer_as_json(demo: str, document: Path) -> None:
    arguments = (demo, "-f", document, "-p", "What is the secret number?", "--budget", "50%", "-n", "12")
    report = answer_json(*arguments)
    kv, budget = report["kv"], report["budget"]
    assert report["n_prompt"] > 300 and 1 <= report["n_generated"] <= 12 and report["text"]
    assert kv["rows_full"] == report["n_prompt"] * 90
    assert sum(map(sum, kv["rows_per_head"])) == kv["rows_kept"] == budget["rows"] == kv["rows_full"] // 2
    assert kv["bytes_full"] == report["n_prompt"] * 23040 and kv["bytes_kept"] == kv["rows_kept"] * 256
    assert kv["bytes_measured"] < 0.8 * kv["bytes_full"]
    assert kv["bytes_measured"] <= kv["peak_bytes"]  # read layer by layer, the whole cache never exists
    assert all(report["ms"][key] > 0 for key in ("load", "prefill", "select", "decode"))
    assert report["ms"]["select"] < report["ms"]["prefill"]
    again = answer_json(*arguments)
    assert again["text"] == report["text"]


def test_a_memory_answers_as_its_text(demo: str, document: Path, tmp_path: Path) -> None:
    memory, options = tmp_path / "the ferry.hkv", ("-c", "2048", "-ctk", "q8_0")
    done = run("ingest", demo, "-f", document, "-o", memory, "--name", "a ferry", *options)
    assert (done.returncode, done.stdout) == (0, f"{memory}\n"), done.stderr
    assert run("ingest", demo, "-f", document, "-o", memory, *options).stderr.endswith("(overwrite=True, --force)\n")
    (listed,) = json.loads(run("capsules", tmp_path, "--json").stdout)["capsules"]
    assert (listed["name"], listed["turns"], listed["bytes"]) == ("a ferry", 1, memory.stat().st_size)
    question = (demo, "-p", "What is the secret number?", "--budget", "50%", "-n", "12", *options)
    remembered, read = (answer_json(*question, *how) for how in (("--memory", memory), ("-f", document)))
    assert remembered["text"] == read["text"] != "" and remembered["n_prompt"] == read["n_prompt"]
    assert remembered["ms"]["memory"] > 0
    refused = run("chat", *question, "-ctv", "q8_0", "--memory", memory)
    assert refused.returncode == 1
    assert refused.stderr == f"error: {memory} does not fit: cache type of V is f16 in it, q8_0 here\n"


def test_prompt_from_stdin_and_cache_types(demo: str) -> None:
    report = answer_json(demo, "-n", "2", "-ctk", "q8_0", "-ctv", "q5_1", "-c", "1024", stdin="Say hello.")
    assert (report["kv"]["type_k"], report["kv"]["type_v"]) == ("q8_0", "q5_1")
    assert report["budget"]["keep_ratio"] == 1  # too short a prompt to gain anything


def test_a_text_is_the_same_however_it_comes(demo: str, document: Path, tmp_path: Path) -> None:
    arguments = ("-p", "Sum it up.", "-n", "2")
    plain, windows, fifo = (tmp_path / name / "doc.txt" for name in ("plain", "windows", "fifo"))
    for path in (plain, windows, fifo):
        path.parent.mkdir()
    text = document.read_text().replace(". ", ".\n")
    plain.write_text(text)
    windows.write_bytes(text.replace("\n", "\r\n").encode("utf-16"))
    os.mkfifo(fifo)
    expected = answer_json(demo, "-f", plain, *arguments)["n_prompt"]
    n_name = answer_json(demo, "-f", "-", *arguments, stdin=text)["n_prompt"] - expected
    assert -8 < n_name < 0  # it is called "-", and not "doc.txt"
    assert answer_json(demo, "-f", windows, *arguments)["n_prompt"] == expected
    writer = threading.Thread(target=fifo.write_text, args=(text,))
    writer.start()
    assert answer_json(demo, "-f", fifo, *arguments)["n_prompt"] == expected
    writer.join()


def test_without_standard_input(demo: str) -> None:
    def closed(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", 'exec "$@" <&-', "sh", *COMMAND, "chat", demo, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=TIMEOUT_S, check=False)

    done = closed("-p", "Say hello.", "-n", "2", "--temp", "0")
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    done = closed()
    assert done.returncode == 1
    assert done.stderr == "error: there is no standard input to read from: name a file, or give the prompt with -p\n"


def test_no_tokens_read_the_prompt_alone(demo: str) -> None:
    done = run("chat", demo, "-p", "Say hello.", "-st", "-n", "0")
    assert (done.returncode, done.stdout) == (0, "") and done.stderr.startswith("[ prompt ")
    report = answer_json(demo, "-p", "Say hello.", "-n", "0")
    assert (report["text"], report["n_generated"], report["finish"]) == ("", 0, "length")


def test_single_turn_as_text(demo: str, document: Path) -> None:
    done = run("chat", demo, "-f", document, "-p", "Sum it up.", "-st", "-n", "3", "--budget", "10%")
    assert done.returncode == 0 and done.stdout.strip()
    assert done.stderr.startswith("[ prompt ") and " MiB (" in done.stderr and "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-c", "256"], "tokens, the context holds 256: shorten it or raise -c"),
        (["--budget", "10KiB"], "is below the floor of 18 rows per KV head (2 sinks + 16 observed)"),
    ],
)
def test_errors_are_one_line(demo: str, document: Path, arguments: list[str], message: str) -> None:
    done = run("chat", demo, "-f", document, "-p", "hello", "-st", *arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_damaged_model(demo: str, tmp_path: Path) -> None:
    data = Path(demo).read_bytes()
    for name, part in (("head.gguf", data[:50_000]), ("half.gguf", data[: len(data) // 2]), ("text.gguf", b"hello")):
        (tmp_path / name).write_bytes(part)
        done = run("chat", tmp_path / name, "-p", "hello")
        assert done.returncode == 1 and name in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_inspect(demo: str) -> None:
    report = json.loads(run("inspect", demo, "--json", "--budget", "1MiB", "-c", "4096").stdout)
    assert report["is_supported"] and report["bytes_per_token"] == 23040
    assert 0 <= 2**20 - report["plan"]["bytes_kept"] < 256
    assert run("--version").stdout.startswith("pyheadkv ")


@pytest.fixture
def terminal(demo: str) -> Iterator[pexpect.spawn]:
    arguments = [*COMMAND[1:], "chat", demo, "--temp", "0", "-n", "400", "--budget", "50%"]
    child = pexpect.spawn(
        COMMAND[0],
        arguments,
        env={**ENV, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        encoding="utf-8",
        timeout=TIMEOUT_S,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    child.expect("Ctrl-D leaves")
    child.expect_exact(PROMPT_IS_READY)
    yield child
    child.close(force=True)


def test_chat_on_a_terminal(terminal: pexpect.spawn, document: Path, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\0\0")
    terminal.sendline(f"/read {tmp_path}/x.bin")
    terminal.expect("has a NUL byte at offset 0")
    terminal.sendline("/read -")
    terminal.expect("standard input is a terminal")
    terminal.sendline("/nonsense")
    terminal.expect("unknown command /nonsense, known are")
    terminal.sendline(f"/read {document}")
    terminal.expect("characters go into the next message")
    terminal.sendline("Write a very long story about the ferry.")
    terminal.expect(r"\d/\d+")  # the bar
    terminal.expect("[Tt]he ")  # an answer has begun
    terminal.kill(signal.SIGINT)
    terminal.expect("stopped")
    terminal.sendline("/stats")
    terminal.expect(r"positions +\d+, of which \d+ compressed")
    terminal.expect(r"plan +headkv:.*, budget 50%")
    saved = tmp_path / "the ferry.hkv"
    terminal.sendline(f"/save {saved}")
    terminal.expect(r"the ferry\.hkv: \d+ tokens, of which \d+ are read again with the next message")
    terminal.sendline("/clear")
    terminal.expect("a new conversation")
    terminal.sendline(f"/save {saved}")
    terminal.expect("nothing was read yet")
    terminal.sendline(f"/load {saved}")
    terminal.expect(r"the ferry\.hkv: \d+ tokens")
    terminal.sendline("/exit")
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 0


@pytest.mark.parametrize("no_color", [{}, {"NO_COLOR": "1"}], ids=str)
def test_colours_only_where_they_are_wanted(demo: str, no_color: dict[str, str]) -> None:
    env = {name: value for name, value in ENV.items() if name != "NO_COLOR"} | {"TERM": "xterm-256color"} | no_color
    child = pexpect.spawn(COMMAND[0], [*COMMAND[1:], "inspect", demo], env=env, encoding="utf-8", timeout=TIMEOUT_S)
    assert ("\x1b" in child.read()) == (not no_color)


def test_leaving_with_ctrl_c_twice(terminal: pexpect.spawn) -> None:
    terminal.sendcontrol("c")
    terminal.expect("Ctrl-C again or Ctrl-D leaves")
    terminal.sendcontrol("c")
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 130


def test_leaving_with_ctrl_d(terminal: pexpect.spawn) -> None:
    terminal.sendcontrol("d")
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 0


def test_an_answer_in_a_loop_ends(demo: str) -> None:
    question = ("-p", "What is the capital of France?", "-sys", "", "-c", "1024", "--repeat-penalty", "1")
    report = answer_json(demo, *question)
    assert report["finish"] == "loop" and 128 <= report["n_generated"] < 600
    assert answer_json(demo, *question, "-n", "20")["finish"] == "length"


@pytest.mark.parametrize("budget", ["10%", "1.5%"])
def test_readmes_command_on_the_sample_answers_rightly(demo: str, budget: str) -> None:
    report = answer_json(demo, "-f", "sample", "-p", QUESTION, "--budget", budget, "-n", "24")
    assert "4827" in report["text"] and report["budget"]["keep_ratio"] < 0.11
    assert report["policy"].startswith("headkv")  # the ready profile holds for the system text of the demo
