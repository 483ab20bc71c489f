"""Which conversation is in the cache, which lie in a folder, and what goes when it is full; rows are made up."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyheadkv.capsule.reader import Contents, FileId, read_contents
from pyheadkv.capsule.writer import append_turn, is_own, write_capsule
from pyheadkv.engine.abi import STATUS_NO_MEMORY
from pyheadkv.errors import CapsuleError, NativeError, UsageError
from pyheadkv.policy.budget import Budget
from pyheadkv.server import conversations
from pyheadkv.server.conversations import MIN_TOKENS, Conversations
from pyheadkv.server.folder import Folder, n_equal
from tests.unit.capsule.made import CELL_BYTES, HEADER, made

BYTES_PER_TOKEN = sum(k + v for k, v in CELL_BYTES)
N_CTX = 4000
ANSWER = [*range(9000, 9005)]


class FakeHeadKV:
    """Saves and loads as HeadKV does, rows that are made up; answers are 5 tokens."""

    def __init__(self) -> None:
        self.llama = SimpleNamespace(input_ids=np.zeros(N_CTX, dtype=np.intc), n_tokens=0)
        self.shape = SimpleNamespace(bytes_per_token=lambda k, v: BYTES_PER_TOKEN)
        self.type_k = self.type_v = "f16"
        self.native = SimpleNamespace(read_reason=lambda: "", stats=lambda: SimpleNamespace(bytes_beside=0))
        self.budget = Budget.parse("25%")
        self.own: FileId | None = None
        self.fail: Exception | None = None
        self.loads: list[Path] = []
        self.failed: list[Path] = []

    @property
    def tokens(self) -> list[int]:
        found: list[int] = self.llama.input_ids[: self.llama.n_tokens].tolist()
        return found

    @tokens.setter
    def tokens(self, tokens: list[int]) -> None:
        self.llama.n_tokens = len(tokens)
        self.llama.input_ids[: len(tokens)] = tokens

    def answer(self, prompt: list[int]) -> int:
        """Read a prompt and answer it; gives the tokens that were read."""
        n_read = len(prompt) - n_equal(np.array(self.tokens), np.array(prompt))
        self.tokens = [*prompt, *ANSWER]
        return n_read

    def save(self, path: Path, *, n_rows: int) -> Contents:
        self._fail()
        talk = made(self.tokens, n_rows)
        if self.own and is_own(path, self.own):
            append_turn(path, self.own, HEADER, talk)
        else:
            self.own = write_capsule(path, HEADER, talk)
        return read_contents(path)

    def load(self, path: Path, *, is_shared: bool) -> None:
        self.failed += [path] if self.fail else []
        self._fail()
        contents = read_contents(path)
        self.tokens = contents.tokens[: contents.n_rows].tolist()
        status = path.stat()
        self.own = None if is_shared else (status.st_dev, status.st_ino)
        self.loads.append(path)

    def check_capsule(self, contents: Contents) -> None:
        if contents.header.name != "made":
            raise CapsuleError(f"{contents.path} does not fit: another model")

    def _fail(self) -> None:
        if self.fail:
            error, self.fail = self.fail, None
            raise error


class Asked:
    """A server's conversations in a folder; `ask` is a turn."""

    def __init__(self, path: Path, n_bytes_max: int = 1 << 30) -> None:
        self.headkv: Any = FakeHeadKV()
        self.notices: list[str] = []
        self.folder = Folder(path, n_bytes_max)
        with self.folder.used_alone():
            self.refused = self.folder.scan(self.headkv.check_capsule)
        self.talks = Conversations(self.headkv, self.folder, self.notices.append)

    def ask(self, prompt: list[int]) -> int:
        """Tokens that were read for a prompt."""
        self.talks.take(prompt)
        n_read: int = self.headkv.answer(prompt)
        self.talks.keep(len(prompt))
        return n_read

    def files(self) -> list[Path]:
        return sorted(self.folder.path.glob("*.hkv"))


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path / "memory")


def text(seed: int, n: int = 200) -> list[int]:
    return np.random.default_rng(seed).integers(0, 1000, n).tolist()


def turn(prompt: list[int], seed: int) -> list[int]:
    """A prompt, its answer, and 10 tokens more."""
    return [*prompt, *ANSWER, *text(seed, 10)]


def test_a_chat_that_comes_back_after_others_reads_only_what_is_new(asked: Asked) -> None:
    chats = [text(seed) for seed in range(4)]
    assert [asked.ask(chat) for chat in chats] == [200] * 4
    for n_turn in range(3):
        chats = [turn(chat, n_turn) for chat in chats]
        assert [asked.ask(chat) for chat in chats] == [15] * 4
    assert len(asked.files()) == 4 and asked.talks.n_loaded == 12
    assert [read_contents(path).n_rows for path in asked.files()] == [245] * 4
    assert asked.ask(turn(chats[-1], 9)) == 10 and asked.talks.n_loaded == 12  # it was hot, with its answer
    assert asked.notices == []


def test_a_restart_finds_all_of_them(asked: Asked) -> None:
    chats = [turn(text(seed), seed) for seed in range(3)]
    for chat in chats:
        asked.ask(chat)
    again = Asked(asked.folder.path)
    assert [again.ask(turn(chat, 5)) for chat in chats] == [15] * 3
    assert len(again.files()) == 3


def test_a_cache_that_was_emptied_is_loaded_again(asked: Asked) -> None:
    chat = text(0)
    asked.ask(chat)
    asked.headkv.tokens, asked.headkv.own = [], None  # HeadKV.clear
    asked.talks.forget()
    assert asked.ask(turn(chat, 1)) == 15 and asked.talks.n_loaded == 1
    assert len(asked.files()) == 1 and asked.notices == []


def test_two_chats_about_one_text_are_two(asked: Asked) -> None:
    document = text(0)
    first, second = document + text(1, 10), document + text(2, 10)
    asked.ask(first)
    assert asked.ask(second) == 10  # it is hot
    assert asked.ask(turn(first, 3)) == 15 and asked.ask(turn(second, 4)) == 15
    assert len(asked.files()) == 2
    asked.ask(text(5))
    assert asked.ask(document + text(6, 10)) == 10 and asked.talks.n_loaded == 3  # of either
    assert len(asked.files()) == 4
    assert sorted(read_contents(path).n_rows for path in asked.files()) == [200, 210, 225, 225]


def test_an_answer_that_is_asked_for_again_has_no_file_of_its_own(asked: Asked) -> None:
    chat = text(0)
    asked.ask(chat)
    size = asked.files()[0].stat().st_size
    asked.ask(text(1))
    assert asked.ask(chat) == 0
    assert len(asked.files()) == 2
    assert max(path.stat().st_size for path in asked.files()) < size + 1000  # no rows were written twice


def test_a_small_gain_is_not_loaded(asked: Asked) -> None:
    system, long = text(0, 40), text(1, 2000)
    asked.ask(system + long)
    asked.ask(text(2))
    assert asked.ask(system + text(3)) == 240 and asked.headkv.loads == []
    assert asked.ask(system + long + text(4, 10)) == 10


def test_what_is_short_or_was_not_read_is_not_saved(asked: Asked) -> None:
    asked.ask(text(0, MIN_TOKENS - 1))
    assert asked.files() == []
    prompt = text(1)
    asked.talks.take(prompt)
    asked.headkv.tokens = prompt[:100]  # its client went away
    asked.talks.keep(len(prompt))
    assert asked.files() == []
    asked.ask(text(2, MIN_TOKENS))
    assert len(asked.files()) == 1


# ---- the size of the folder ----


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of a file of 200 tokens, at the most."""
    monkeypatch.setattr(conversations, "_BYTES_BESIDE", 2500)
    return 200 * BYTES_PER_TOKEN + 2500


def test_those_that_were_not_used_for_longest_go(tmp_path: Path, one: int) -> None:
    asked = Asked(tmp_path, 4 * one)
    chats = [text(seed) for seed in range(3)]
    for chat in chats:
        asked.ask(chat)
    chats[0] = turn(chats[0], 1)
    asked.ask(chats[0])  # is used now
    asked.ask(text(7, 400))
    assert len(asked.files()) == 3 and asked.folder.n_bytes <= 4 * one
    assert asked.folder.n_bytes == sum(path.stat().st_size for path in asked.files())
    assert [asked.ask(turn(chats[which], 2)) for which in (0, 2, 1)] == [15, 15, 215] and asked.notices == []
    assert Asked(tmp_path, 4 * one).folder.n_bytes <= 4 * one


def test_one_that_others_began_with_is_used(asked: Asked) -> None:
    asked.ask(text(0))
    asked.ask(text(1))
    first, second = sorted(asked.files(), key=lambda path: read_contents(path).tokens.tolist() != text(0) + ANSWER)
    assert asked.ask(text(0, 100) + text(3, 60)) == 60 and asked.talks.n_loaded == 1
    assert first.stat().st_mtime_ns > second.stat().st_mtime_ns


def test_the_hot_one_stays_when_room_is_made(tmp_path: Path, one: int) -> None:
    asked = Asked(tmp_path, 2 * one)
    asked.ask(text(0))
    asked.ask(text(1))
    (hot,) = (kept for kept in asked.folder._kept.values() if kept.tokens.tolist() == text(1))
    hot.used = 0  # a clock that was set back
    assert asked.folder.make_room(one, hot) and hot.path.exists() and len(asked.files()) == 1


def test_the_hot_one_is_spared_and_what_is_too_large_is_not_saved(tmp_path: Path, one: int) -> None:
    asked = Asked(tmp_path, 2 * one)
    asked.ask(text(0))
    asked.ask(text(1, 500))
    (line,) = asked.notices
    assert "has no room" in line and "--memory-size" in line
    assert [read_contents(path).n_rows for path in asked.files()] == [200]  # and nothing went for it
    assert asked.ask(turn(text(0), 1)) == 15
    assert len(asked.files()) == 1


def test_what_somebody_put_there_is_opened_and_never_written_or_deleted(tmp_path: Path, one: int) -> None:
    book = text(0, 500)
    write_capsule(tmp_path / "book.hkv", HEADER, made(book))
    before = (tmp_path / "book.hkv").read_bytes()
    asked = Asked(tmp_path, 3 * one)
    assert asked.folder.others() == [tmp_path / "book.hkv"] and asked.folder.n_bytes == 0
    chat = book + text(1, 10)
    assert asked.ask(chat) == 10
    assert asked.ask(text(2, 590)) == 590  # the chat goes for it
    assert asked.ask(turn(chat, 3)) == 25
    assert (tmp_path / "book.hkv").read_bytes() == before
    assert asked.talks.n_loaded == 2


# ---- what goes wrong ----


def test_files_that_cannot_be_used_are_named_and_stay(tmp_path: Path) -> None:
    first = Asked(tmp_path)
    for seed in range(2):
        first.ask(text(seed))
    broken, whole = first.files()
    broken.write_bytes(broken.read_bytes()[:-5])
    write_capsule(tmp_path / "other.hkv", replace(HEADER, name="other"), made(text(3)))
    part = tmp_path / f".{whole.name}.abcdefg1.part"
    part.write_bytes(b"begun")
    (tmp_path / "folder.hkv").mkdir()
    again = Asked(tmp_path)
    assert len(again.refused) == 2 and "damaged" in again.refused[0] and "other.hkv does not fit" in again.refused[1]
    assert not part.exists() and broken.exists() and again.talks.n_parked == 1


@pytest.mark.parametrize("error", [CapsuleError("damaged"), NativeError("no room", STATUS_NO_MEMORY)])
def test_one_that_cannot_be_loaded_is_read_again(asked: Asked, error: Exception) -> None:
    chats = [text(0), text(1)]
    for chat in chats:
        asked.ask(chat)
    asked.headkv.fail = error
    assert asked.ask(turn(chats[0], 1)) == 215
    assert asked.notices == [f"a conversation is read again: {error}"]
    assert asked.ask(turn(chats[1], 1)) == 15
    assert asked.ask(turn(turn(chats[0], 1), 1)) == 15  # of its new file
    assert len(asked.files()) == 3 and len(asked.headkv.loads) == 2
    asked.ask(text(3))
    assert asked.ask(chats[0] + text(4, 10)) == 10
    assert (asked.headkv.loads[-1] in asked.headkv.failed) == isinstance(error, NativeError)


def test_one_that_cannot_be_saved_gets_another_file(asked: Asked) -> None:
    chat = text(0)
    asked.ask(chat)
    asked.headkv.fail = CapsuleError("the disk is full")
    chat = turn(chat, 1)
    assert asked.ask(chat) == 10
    assert asked.notices == ["a conversation was not saved: the disk is full"]
    assert asked.ask(turn(chat, 2)) == 10
    assert sorted(read_contents(path).n_rows for path in asked.files()) == [200, 230]


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(UsageError, match="another server")
    with Folder(tmp_path, 1).used_alone(), refused, Folder(tmp_path, 1).used_alone():
        pass
    with Folder(tmp_path, 1).used_alone():
        pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be used"), Folder(tmp_path / "file" / "x", 1).used_alone():
        pass


@pytest.mark.parametrize(
    ("budget", "bytes_beside", "is_refused"), [("25%", 0, True), ("full", 0, False), ("full", 1, True)]
)
def test_what_cannot_be_saved_is_refused_at_once(
    tmp_path: Path, budget: str, bytes_beside: int, is_refused: bool
) -> None:
    """Without an archive a whole cache can be saved all the same, unless its rows are not all there is."""
    headkv: Any = FakeHeadKV()
    headkv.native.read_reason = lambda: "no such layers"
    headkv.native.stats = lambda: SimpleNamespace(bytes_beside=bytes_beside)
    headkv.budget = Budget.parse(budget)
    with pytest.raises(UsageError, match="no such layers") if is_refused else nullcontext():
        Conversations(headkv, Folder(tmp_path, 1), print)


# ---- any order of chats ----

CHATS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=14)


@settings(max_examples=20)
@given(CHATS, st.integers(0, 3))
def test_any_order(order: list[tuple[int, int]], n_restart: int) -> None:
    """Chats about two texts: what a chat has read before is never read again, and the folder is never too large."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        asked = Asked(folder)
        chats = [text(which % 2, 300) + text(10 + which, 8) for which in range(4)]
        is_begun = [False] * 4
        for at, (which, seed) in enumerate(order):
            if at == n_restart:
                asked = Asked(folder)
            new = turn(chats[which], seed) if is_begun[which] else chats[which]
            n_read = asked.ask(new)
            if is_begun[which]:
                assert n_read <= 15
            chats[which], is_begun[which] = new, True
        assert asked.notices == [] and asked.refused == []
        saved = {tuple(read_contents(path).tokens[: read_contents(path).n_rows].tolist()) for path in asked.files()}
        assert {tuple(chat) for chat, begun in zip(chats, is_begun, strict=True) if begun} == saved
