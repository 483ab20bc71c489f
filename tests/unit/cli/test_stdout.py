"""What a terminal cannot show is replaced; what cannot be written is one line and exit code 1."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyheadkv.chat.session import HeadKV
from pyheadkv.cli.stdout import OutputError, guarded_stdout
from tests.unit.cli.test_chat import OPTIONS, ChatLlama, ReadingBar, Talk
from tests.unit.fake_llama import without_library

ROOT = Path(__file__).parents[3]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
LATE_FAILURE = """if True:
    from pyheadkv.cli.stdout import OutputError, guarded_stdout
    with guarded_stdout():
        try:
            print("lost", flush=True)
        except OutputError:
            pass  # a chat goes on
"""


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"na?ve ?? ?"),
        ("latin-1", b"na\xefve ?? ?"),
        ("cp1252", b"na\xefve ?? ?"),
        ("utf-8", "naïve 漢字 ?".encode()),
    ],
)
def test_characters_that_cannot_be_shown(monkeypatch: pytest.MonkeyPatch, encoding: str, shown: bytes) -> None:
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    with guarded_stdout():
        print("naïve 漢字 \ud800", end="")
    assert written.getvalue() == shown


@pytest.mark.parametrize("how", ["line_buffering", "write_through"])
def test_what_is_shown_at_once_still_is(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """On a terminal, and with PYTHONUNBUFFERED; else notes on stderr come before the answer's last line."""
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, "utf-8", **{how: True})
    monkeypatch.setattr(sys, "stdout", terminal)
    with guarded_stdout():
        print("answer")
        assert written.getvalue().split() == [b"answer"]


def run(*command: str, stdout: int, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    return subprocess.run(
        [sys.executable, *command], stdout=stdout, stderr=subprocess.PIPE, text=True, env=env, check=False
    )


@needs_full
@pytest.mark.parametrize(
    "command",
    [("-m", "pyheadkv.cli.app", "policies"), ("-m", "pyheadkv.cli.app", "--help"), ("-c", LATE_FAILURE)],
    ids=lambda command: command[-1].splitlines()[0],
)
def test_a_full_disk(command: tuple[str, ...]) -> None:
    with FULL.open("w") as full:
        done = run(*command, stdout=full.fileno())
    assert (done.returncode, done.stderr) == (1, "error: stdout cannot be written: No space left on device\n")


@pytest.mark.parametrize("argument", ["policies", "--help"])
def test_a_closed_pipe_is_quiet(argument: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run("-m", "pyheadkv.cli.app", argument, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_command_on_an_ascii_terminal() -> None:
    done = run(
        "-c",
        "import sys, types; from pyheadkv.cli import app;"
        "sys.modules['pyheadkv.cli.policies'] = types.SimpleNamespace(run=lambda *_: print('漢字'));"
        "sys.argv = ['pyheadkv', 'policies']; app.main()",
        stdout=subprocess.PIPE,
        encoding="ascii",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "??\n", "")


def test_what_was_said_stays_in_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_library(monkeypatch)
    talk = Talk(HeadKV(ChatLlama()), OPTIONS, ReadingBar())
    n_written = 0

    def fill(*_: object, **__: object) -> None:
        nonlocal n_written
        n_written += 1
        if n_written == 2:
            raise OutputError("stdout cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.print", fill)
        talk._answer("hello")
    assert capsys.readouterr().err == "error: stdout cannot be written: No space left on device\n"
    assert [message["role"] for message in talk.conversation.messages] == ["user", "assistant"]
    assert len(talk.conversation.messages[1]["content"].split()) == 2
