"""What a chat begins with: the demo's own system text and sampling, the sample by its name, lines about the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pyheadkv.chat import demo
from pyheadkv.chat.session import HeadKV
from pyheadkv.cli.chat import Talk
from pyheadkv.cli.first_message import open_first
from pyheadkv.cli.render import ReadingBar
from pyheadkv.cli.welcome import welcome_lines
from pyheadkv.engine.sources import DEMO_GGUF
from pyheadkv.files.plain_text import Limit
from tests.unit.cli.test_chat import OPTIONS, ChatLlama
from tests.unit.fake_llama import without_library


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> ChatLlama:
    without_library(monkeypatch)
    return ChatLlama()


def test_the_demo_brings_its_system_text_and_sampling(llama: ChatLlama) -> None:
    llama.model_path = f"/somewhere/{DEMO_GGUF}"
    options = replace(OPTIONS, n_predict=None, temp=None, top_k=9)
    talk = Talk(headkv := HeadKV(llama), options, ReadingBar())
    assert talk.conversation.messages == [{"role": "system", "content": demo.SYSTEM}]
    assert talk.conversation.sampling == replace(demo.SAMPLING, top_k=9)
    for given, messages in (("Be bold.", [{"role": "system", "content": "Be bold."}]), ("", [])):  # -sys goes over it
        assert Talk(headkv, replace(options, system=given), ReadingBar()).conversation.messages == messages


def test_the_sample_has_a_name_unless_a_file_has_it(
    llama: ChatLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = replace(OPTIONS, files=[Path("sample")], prompt="hello")
    files, _ = open_first(options).read(Limit.of_context(8192))
    ((name, text),) = files
    assert name == "log.txt" and text.startswith("LOG OF THE WEATHER STATION")
    talk = Talk(HeadKV(llama), OPTIONS, ReadingBar(), files)
    talk._command("/read sample")
    (tmp_path / "sample").write_text("a text of the user's")
    talk._command("/read sample")
    first, second, third = talk.conversation.attachments
    assert first == second and third == "--- File: sample ---\na text of the user's\n"


def test_two_lines_at_the_start_and_one_more_for_the_demo(llama: ChatLlama) -> None:
    lines = welcome_lines(headkv := HeadKV(llama, budget="25%"))
    assert lines == [
        "fake, 135 million parameters, context 4096 tokens",
        "budget 25%: up to 1.0 MiB of keys and values, whole cache 4.0 MiB at this context",
    ]
    llama.model_path = DEMO_GGUF
    assert welcome_lines(headkv) == [*lines, demo.WORDS]
    headkv.close()
    assert welcome_lines(HeadKV(llama, budget="full"))[1] == "budget full: 4.0 MiB at this context"
