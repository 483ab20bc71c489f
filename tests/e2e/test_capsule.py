"""Conversations in files: opened again, they go on to the bit as if they had never been left."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.capsule.reader import read_contents
from pyheadkv.chat.session import HeadKV, load
from pyheadkv.engine.llama import cut
from pyheadkv.errors import CapsuleError, UsageError
from pyheadkv.model.shape import CACHE_TYPES
from tests.e2e.conftest import WriteTiny
from tests.e2e.test_session import answer, prompt_of
from tests.tiny import Tiny, make_weights, write_tiny

ROOT = Path(__file__).parents[2]
EQUAL = Tiny(n_vocab=256)
UNEQUAL = Tiny(n_vocab=256, n_head=(4, 2, 2), n_head_kv=(2, 2, 1))
N_DOCUMENT, N_QUESTION, N_ANSWER = 600, 30, 12
DOCUMENT = prompt_of(N_DOCUMENT)
Make = Callable[..., HeadKV]


@pytest.fixture
def make(library: None, tiny_path: WriteTiny) -> Iterator[Make]:
    """A HeadKV on a new Llama; options of the Llama in `llama`."""
    opened: list[Any] = []

    def make(model: Tiny | Path = EQUAL, llama: dict[str, Any] | None = None, **options: Any) -> HeadKV:
        path = tiny_path(model) if isinstance(model, Tiny) else model
        opened.append(load(path, **{"n_ctx": 2048, "n_threads": 1} | (llama or {})))
        return HeadKV(opened[-1], **{"policy": "snapkv", "budget": 0.1, "exact": True} | options)

    yield make
    for llama in opened:
        llama.close()


def logits(headkv: HeadKV) -> np.ndarray:
    return np.ctypeslib.as_array(headkv.llama._ctx.get_logits(), shape=(EQUAL.n_vocab,)).copy()


def ask(headkv: HeadKV, tokens: list[int], seed: int) -> list[int]:
    """A question and its answer behind the tokens."""
    tokens = [*tokens, *prompt_of(N_QUESTION, seed)]
    return tokens + answer(headkv.llama, tokens, N_ANSWER)


def rows(headkv: HeadKV, n: int) -> list[np.ndarray]:
    get, n_layer = headkv.native.rows_get, headkv.shape.n_layer
    return [get(i, is_k, 0, n) for i in range(n_layer) for is_k in (True, False)]


def eval_after(headkv: HeadKV, tokens: list[int]) -> np.ndarray:
    """Logits after tokens that are read behind a whole cache."""
    headkv.llama.eval(tokens)
    return logits(headkv)


# ---- the same bits ----


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("tiny", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_a_saved_text_goes_on_as_stock_does(make: Make, tmp_path: Path, tiny: Tiny, cache_type: str) -> None:
    types = {"type_k": cache_type, "type_v": cache_type}
    reader = make(tiny, types)
    reader.read_whole(DOCUMENT)
    reader.save(tmp_path / "a.hkv")
    ours = make(tiny, types, budget="full")
    ours.load(tmp_path / "a.hkv")
    stock = make(tiny, types)
    stock.close()  # upstream's own path
    stock.llama.eval(DOCUMENT)
    for tokens in (prompt_of(N_QUESTION, 2), [7], [9, 11]):
        np.testing.assert_array_equal(eval_after(stock, tokens), eval_after(ours, tokens))


@pytest.mark.parametrize("archive", ["disk", "ram"])
def test_a_chat_goes_on_as_if_it_had_not_been_left(make: Make, tmp_path: Path, archive: str) -> None:
    path = tmp_path / "chat.hkv"
    first = make(archive=archive)
    tokens = ask(first, ask(first, DOCUMENT, 2), 3)
    contents = first.save(path, name="two questions")
    n_asked = len(tokens) - N_ANSWER
    assert (contents.n_rows, contents.tokens.tolist()) == (n_asked, tokens[:-1])
    assert first.is_compressed  # nothing happened to it
    second = make(archive=archive)
    second.load(path)
    assert not second.is_compressed and second.llama.n_tokens == n_asked
    expected, got = ask(first, tokens, 4), ask(second, tokens, 4)
    assert got == expected
    assert second.stats().n_read == first.stats().n_read == N_ANSWER + N_QUESTION
    for mine, theirs in zip(rows(second, len(got) - N_ANSWER), rows(first, len(got) - N_ANSWER), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_the_very_tokens_that_were_saved_are_answered(make: Make, tmp_path: Path) -> None:
    """A file has no logits: those in memory are of what was read before."""
    first, prompt = make(), DOCUMENT + prompt_of(N_QUESTION, 2)
    expected = answer(first.llama, prompt, N_ANSWER)
    first.save(tmp_path / "a.hkv", n_rows=len(prompt))
    second = make()
    answer(second.llama, prompt_of(700, 5), N_ANSWER)
    second.load(tmp_path / "a.hkv")
    assert second.llama.n_tokens == len(prompt)
    assert answer(second.llama, prompt, N_ANSWER) == expected
    assert second.is_compressed and second.stats().n_read == 16  # those that observe


@pytest.mark.parametrize("is_emptied", [False, True])
def test_loading_in_the_place_of_rows_in_an_archive(make: Make, tmp_path: Path, is_emptied: bool) -> None:
    """As a reading leaves them that was stopped."""
    reader = make()
    reader.read_whole(DOCUMENT)
    reader.save(tmp_path / "a.hkv")
    headkv = make()
    ask(headkv, prompt_of(700, 5), 2)
    assert cut(headkv.llama, 400) and headkv.native.stats().n_pos_archive == 400 and not headkv.is_compressed
    if is_emptied:
        headkv.clear()
        stats = headkv.native.stats()
        assert stats.bytes_archive == stats.n_pos_archive == 0 and stats.n_cells < 400
    headkv.load(tmp_path / "a.hkv")
    for mine, theirs in zip(rows(headkv, N_DOCUMENT), rows(reader, N_DOCUMENT), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("options", [{"sweep": False}, {"archive": "none"}], ids=str)
def test_without_an_archive_of_its_own(make: Make, tmp_path: Path, options: dict[str, Any]) -> None:
    """What was saved is chosen from all the same."""
    reader = make()
    reader.read_whole(DOCUMENT)
    reader.save(tmp_path / "a.hkv")
    plain, loaded = make(), make(**options)
    loaded.load(tmp_path / "a.hkv")
    assert ask(loaded, DOCUMENT, 2) == ask(plain, DOCUMENT, 2)
    assert loaded.is_compressed and loaded.native.stats().n_pos_archive == 0
    assert loaded.stats().n_read == N_QUESTION


def test_a_whole_cache_is_saved_with_its_answer(make: Make, tmp_path: Path) -> None:
    headkv = make(min_prompt=2048)
    tokens = ask(headkv, DOCUMENT, 2)
    contents = headkv.save(tmp_path / "a.hkv")
    assert contents.n_rows == len(contents.tokens) == len(tokens) - 1
    again = make(min_prompt=2048)
    again.load(tmp_path / "a.hkv")
    for mine, theirs in zip(rows(again, contents.n_rows), rows(headkv, contents.n_rows), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_rows_as_generated_are_not_saved(make: Make, tmp_path: Path) -> None:
    headkv = make(rereads_answers=False)
    tokens = ask(headkv, ask(headkv, DOCUMENT, 2), 3)
    contents = headkv.save(tmp_path / "a.hkv")
    assert contents.n_rows == N_DOCUMENT + N_QUESTION  # what follows attended to the first answer as it was generated
    assert contents.tokens.tolist() == tokens[:-1]
    again = make(rereads_answers=False)
    again.load(tmp_path / "a.hkv")
    ask(again, tokens, 4)
    assert again.stats().n_read == len(tokens) + N_QUESTION - contents.n_rows


def test_a_conversation_that_began_anew_is_exact_again(make: Make, tmp_path: Path) -> None:
    headkv = make(rereads_answers=False)
    ask(headkv, ask(headkv, DOCUMENT, 2), 3)
    ask(headkv, prompt_of(N_DOCUMENT, 9), 2)
    assert headkv.save(tmp_path / "a.hkv").n_rows == N_DOCUMENT + N_QUESTION


# ---- turns in one file ----


def test_later_turns_are_appended(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "chat.hkv"
    headkv = make()
    tokens = ask(headkv, DOCUMENT, 2)
    headkv.save(path, messages=[{"role": "user", "content": "a"}])
    size = path.stat().st_size
    tokens = ask(headkv, tokens, 3)
    contents = headkv.save(path, messages=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert contents.n_turns == 2 and path.stat().st_size < 1.2 * size
    again = make()
    loaded = again.load(path)
    assert [message["content"] for message in loaded.messages] == ["a", "b"]
    assert loaded.tokens.tolist() == tokens[:-1]
    for mine, theirs in zip(rows(again, loaded.n_rows), rows(headkv, loaded.n_rows), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    ask(again, tokens, 4)
    assert again.save(path).n_turns == 3


def test_a_turn_that_changed_cuts_those_before(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "chat.hkv"
    headkv = make()
    ask(headkv, ask(headkv, DOCUMENT, 2), 3)
    headkv.save(path)
    tokens = ask(headkv, DOCUMENT[:500], 5)
    headkv.save(path)
    again = make()
    loaded = again.load(path)
    assert loaded.tokens.tolist() == tokens[:-1] and loaded.n_rows == 500 + N_QUESTION
    for mine, theirs in zip(rows(again, loaded.n_rows), rows(headkv, loaded.n_rows), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_shared_file_is_not_written(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "book.hkv"
    reader = make()
    reader.read_whole(DOCUMENT)
    reader.save(path)
    before = path.read_bytes()
    others = [make(), make()]
    for seed, other in enumerate(others):
        other.load(path, is_shared=True)
        ask(other, DOCUMENT, 2 + seed)
        with pytest.raises(CapsuleError, match=r"book.hkv exists"):
            other.save(path)
    assert path.read_bytes() == before
    assert others[0].save(tmp_path / "mine.hkv").n_turns == 1


# ---- files ----


@pytest.mark.parametrize("name", ["plain.hkv", "with blanks and ' quotes.hkv", "книга 書 📖.hkv"])
def test_names_and_permissions(make: Make, tmp_path: Path, name: str) -> None:
    headkv = make()
    headkv.read_whole(DOCUMENT)
    path = tmp_path / "a folder" / name
    path.parent.mkdir()
    old = os.umask(0)
    try:
        headkv.save(path, name=name)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [it.name for it in path.parent.iterdir()] == [name]
    assert make().load(path).header.name == name


def test_nothing_is_written_over(make: Make, tmp_path: Path) -> None:
    headkv = make()
    headkv.read_whole(DOCUMENT)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    links = {name: tmp_path / name for name in ("link", "dangling")}
    links["link"].symlink_to(precious)
    links["dangling"].symlink_to(tmp_path / "nowhere")
    for path in (precious, *links.values()):
        with pytest.raises(CapsuleError, match=f"{path.name} exists"):
            headkv.save(path)
    headkv.save(links["link"], overwrite=True)  # the link is replaced, not what it leads to
    assert precious.read_text() == "mine" and not links["link"].is_symlink()
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(CapsuleError, match="a device, expected a file"):
        headkv.save("/dev/null", overwrite=True)
    with pytest.raises(CapsuleError, match="cannot be written: nothing can be made in the folder"):
        headkv.save(tmp_path / "no folder" / "a.hkv")


def test_a_link_in_the_place_of_the_own_file(make: Make, tmp_path: Path) -> None:
    headkv = make()
    tokens = ask(headkv, DOCUMENT, 2)
    path, moved = tmp_path / "a.hkv", tmp_path / "moved.hkv"
    headkv.save(path)
    before = path.read_bytes()
    path.rename(moved)
    path.symlink_to(moved)
    ask(headkv, tokens, 3)
    with pytest.raises(CapsuleError, match=r"a\.hkv exists"):
        headkv.save(path)
    assert moved.read_bytes() == before
    assert headkv.save(moved).n_turns == 2


@pytest.mark.parametrize("place", ["new", "append"])
def test_a_disk_that_is_full(make: Make, tiny_path: WriteTiny, tmp_path: Path, place: str) -> None:
    """Files may not become larger than what fits almost: what was saved before is there, and nothing else."""
    path = tmp_path / "a.hkv"
    command = [sys.executable, "-m", "tests.e2e.full_disk", tiny_path(EQUAL), path, place]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{path} cannot be written: File too large\n"
    if place == "new":
        assert list(tmp_path.iterdir()) == []
        return
    contents = read_contents(path)
    assert (contents.n_turns, contents.n_dropped, contents.n_rows) == (1, 0, N_DOCUMENT)
    make().load(path)


# ---- what is refused ----


@pytest.fixture
def saved(make: Make, tmp_path: Path) -> Path:
    headkv = make()
    headkv.read_whole(DOCUMENT)
    headkv.save(tmp_path / "saved.hkv")
    return tmp_path / "saved.hkv"


@pytest.mark.parametrize(
    ("tiny", "options", "words"),
    [
        (UNEQUAL, {}, r"model is \S+ in it, \S+ here \(tiny; here tiny\)"),
        (EQUAL, {"type_k": "q8_0"}, "cache type of K is f16 in it, q8_0 here"),
        (EQUAL, {"type_v": "f32"}, "cache type of V is f16 in it, f32 here"),
        (EQUAL, {"rope_freq_base": 5000.0}, r"RoPE is .*rope_freq_base 0, .* in it, .*rope_freq_base 5000, .* here"),
        (EQUAL, {"rope_freq_scale": 0.5}, r"RoPE is .*rope_freq_scale 0, .* in it, .*rope_freq_scale 0.5, .* here"),
        (EQUAL, {"n_ctx": 512}, r"saved\.hkv has 600 tokens, the context of 512 has no room .* -c 1112 \(n_ctx\) has"),
        (EQUAL, {"kv_overrides": {"llama.x": 1}}, "overridden keys is none in it, llama.x=1 here"),
    ],
)
def test_other_models_and_settings(make: Make, saved: Path, tiny: Tiny, options: dict[str, Any], words: str) -> None:
    headkv = make(tiny, options)
    tokens = ask(headkv, prompt_of(300, 5), 2)
    with pytest.raises(CapsuleError, match=words):
        headkv.load(saved)
    assert headkv.is_compressed and headkv.llama.n_tokens == len(tokens) - 1  # the conversation is as it was
    ask(headkv, tokens, 3)
    assert headkv.stats().n_read == N_ANSWER + N_QUESTION


def test_other_weights_with_the_same_norms(make: Make, saved: Path, tmp_path: Path) -> None:
    weights = make_weights(EQUAL)
    weights["blk.1.attn_k"] = weights["blk.1.attn_k"] * np.float32(1.01)
    path = write_tiny(tmp_path / "other.gguf", EQUAL, weights)
    with pytest.raises(CapsuleError, match=r"weights is \w+ in it, \w+ here \(tiny; here tiny\)"):
        make(path).load(saved)


def test_rotation(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headkv = make(llama={"type_k": "q8_0"})
    headkv.read_whole(DOCUMENT)
    headkv.save(tmp_path / "a.hkv")
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    with pytest.raises(CapsuleError, match="rotation of quantised rows is on in it, off here"):
        make(llama={"type_k": "q8_0"}).load(tmp_path / "a.hkv")


def test_damaged_rows_leave_the_conversation(make: Make, saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 1
    saved.write_bytes(data)
    headkv = make()
    tokens = ask(headkv, prompt_of(300, 5), 2)
    with pytest.raises(CapsuleError, match=r"saved\.hkv is damaged: the checksum of . of layer \d, from position 0 on"):
        headkv.load(saved)
    assert headkv.llama.n_tokens == len(tokens) - 1


def test_nothing_to_save(make: Make, tmp_path: Path) -> None:
    headkv = make(archive="none")
    with pytest.raises(UsageError, match="nothing was read yet"):
        headkv.save(tmp_path / "a.hkv")
    ask(headkv, DOCUMENT, 2)
    with pytest.raises(UsageError, match="no archive of all rows was kept"):
        headkv.save(tmp_path / "a.hkv")
    assert list(tmp_path.iterdir()) == []


def test_a_text_longer_than_the_context(make: Make) -> None:
    headkv = make(llama={"n_ctx": 512})
    with pytest.raises(UsageError, match="the text has 600 tokens, the context of 512 has no room"):
        headkv.read_whole(DOCUMENT)


def test_what_llama_cpp_python_saves_with(make: Make) -> None:
    headkv = make()
    ask(headkv, DOCUMENT, 2)
    with pytest.raises(UsageError, match=r"cannot be saved: HeadKV\.save keeps the conversation"):
        headkv.llama.save_state()
    with pytest.raises(UsageError, match=r"which a compressed cache does not have: HeadKV\.save"):
        headkv.llama.set_cache(object())
