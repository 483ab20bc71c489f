"""Chats that begin with a memory, on the demo model: what ingest read is not read again, and answers are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyheadkv.capsule.reader import read_contents
from pyheadkv.chat import demo
from pyheadkv.chat.conversation import Conversation
from pyheadkv.chat.ingest import ingest
from pyheadkv.chat.sampling import Sampling
from pyheadkv.chat.session import HeadKV, load
from pyheadkv.errors import CapsuleError, UsageError

DOCUMENT = (
    "The ferry leaves at nine. It is cold, and the tea in the old harbour is not. " * 14 + "The gate code is 7361."
)
QUESTIONS = ("What is the gate code?", "\n\nAnd when does the ferry leave?")
MakeChat = Callable[..., Conversation]


@pytest.fixture
def make_chat(library: None, demo_path: Path) -> Iterator[MakeChat]:
    """A chat on a new Llama."""
    opened: list[Any] = []

    def make(system: str | None = demo.SYSTEM, template: str | None = None, **options: Any) -> Conversation:
        opened.append(load(demo_path, n_ctx=2048, n_threads=1, chat_template=template))
        headkv = HeadKV(opened[-1], **{"policy": "snapkv", "budget": 0.2} | options)
        return Conversation(headkv, system, Sampling(temp=0, max_tokens=6))

    yield make
    for llama in opened:
        llama.close()


@pytest.fixture(scope="module")
def memory(library: None, demo_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "ferry.hkv"
    llama = load(demo_path, n_ctx=2048, n_threads=1)
    ingest(llama, [("ferry.txt", DOCUMENT)], path, system=demo.SYSTEM)
    assert llama.n_tokens == 0 and "eval" not in vars(llama)  # as if nothing had been on it
    llama.close()
    return path


def say(chat: Conversation, text: str) -> str:
    return "".join(chat.answer(text))


def test_a_question_behind_a_memory(make_chat: MakeChat, memory: Path) -> None:
    """Whatever it begins with, it goes on where the memory ends, and is answered as behind the text itself."""
    n_rows = read_contents(memory).n_rows
    for question in QUESTIONS:
        ours, plain = make_chat(), make_chat()
        contents = ours.load(memory, is_shared=True)
        plain.attach("ferry.txt", DOCUMENT)
        assert say(ours, question) == say(plain, question)
        assert ours.messages == plain.messages and ours.attachments == []
        mine, theirs = ours.headkv, plain.headkv
        assert mine.is_compressed and contents.header.name == "ferry.txt"
        n_prompt = theirs.stats().n_prompt
        assert mine.stats().n_prompt == n_prompt
        assert mine.stats().n_read <= max(n_prompt - n_rows, 16)  # at least those that observe
        kept = [[h.native.positions(i, 0).tolist() for i in range(h.shape.n_layer)] for h in (mine, theirs)]
        for a, b in zip(*kept, strict=True):  # near ties aside: the batches are others
            assert len(a) == len(b) and len(set(a) & set(b)) >= 0.9 * len(a)


def test_a_chat_is_saved_and_gone_on_with(make_chat: MakeChat, memory: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.hkv"
    first, second = make_chat(), make_chat(system="Be rude.")
    first.load(memory, is_shared=True)
    said = say(first, QUESTIONS[0])
    with pytest.raises(CapsuleError, match=r"ferry\.hkv exists"):
        first.save(memory)
    first.save(path)
    second.load(path)
    assert second.system == demo.SYSTEM and second.messages == first.messages
    assert second.messages[-1] == {"role": "assistant", "content": said}
    assert say(second, QUESTIONS[1]) == say(first, QUESTIONS[1])
    assert second.headkv.stats().n_read < 60
    assert second.save(path).n_turns == 2


def test_another_template_reads_it_again_and_says_so(make_chat: MakeChat, memory: Path) -> None:
    notices: list[str] = []
    chat = make_chat(on_notice=notices.append)
    chat.load(memory)
    assert notices == []
    other = make_chat(
        template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", on_notice=notices.append
    )
    other.load(memory)
    n_rows = read_contents(memory).n_rows
    assert len(notices) == 1 and f"the chat template writes it otherwise here, {n_rows} of {n_rows}" in notices[0]


def test_a_conversation_without_words(make_chat: MakeChat, tmp_path: Path) -> None:
    chat = make_chat()
    with pytest.raises(UsageError, match="nothing is attached"):
        chat.read_attachments()
    say(chat, "Hello.")
    chat.headkv.save(tmp_path / "tokens.hkv")
    before = [*chat.messages]
    with pytest.raises(CapsuleError, match="has tokens and no messages"):
        chat.load(tmp_path / "tokens.hkv")
    assert chat.messages == before


def test_ingest_refuses_before_it_reads(demo_path: Path, memory: Path, tmp_path: Path) -> None:
    llama = load(demo_path, n_ctx=256)
    read: list[int] = []
    for texts, path, error, words in (
        ([("a", DOCUMENT)], memory, CapsuleError, "exists"),
        ([("a", DOCUMENT)], tmp_path / "a.hkv", UsageError, "the context of 256 has no room"),
        ([], tmp_path / "a.hkv", UsageError, "there is no text to read"),
    ):
        with pytest.raises(error, match=words):
            ingest(llama, texts, path, on_progress=lambda n_done, n_total: read.append(n_done))
    llama.close()
    assert read == [] and not (tmp_path / "a.hkv").exists()
