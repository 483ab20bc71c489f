"""Turns of a conversation with an archive: what is read is counted, and answers are those of a whole cache's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.chat.session import HeadKV, load
from pyheadkv.errors import UsageError
from tests.e2e.test_session import TINY, answer, prompt_of
from tests.tiny import write_tiny

N_DOCUMENT, N_QUESTION, N_ANSWER = 600, 30, 12


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", TINY)


@pytest.fixture
def make(tiny: Path) -> Iterator[Callable[..., HeadKV]]:
    """A HeadKV on a new Llama."""
    opened: list[Any] = []

    def make(**options: Any) -> HeadKV:
        opened.append(load(tiny, n_ctx=2048, n_threads=1))
        return HeadKV(opened[-1], **{"policy": "snapkv", "budget": 0.1, "exact": True} | options)

    yield make
    for llama in opened:
        llama.close()


def kept(headkv: HeadKV) -> list[list[int]]:
    layers = headkv.native.layers()
    return [headkv.native.positions(i, ih).tolist() for i, layer in enumerate(layers) for ih in range(layer.n_head_kv)]


class Talk:
    """Questions asked one after the other; `n_read` counts the tokens that the last one took."""

    def __init__(self, headkv: HeadKV) -> None:
        self.headkv, self.tokens = headkv, prompt_of(N_DOCUMENT)

    def ask(self, seed: int, n: int = N_ANSWER) -> list[int]:
        self.tokens += prompt_of(N_QUESTION, seed)
        said = answer(self.headkv.llama, self.tokens, n)
        self.tokens += said
        return said

    @property
    def n_read(self) -> int:
        return self.headkv.stats().n_read


@pytest.mark.parametrize("archive", ["disk", "ram", "DIR"])
def test_only_new_tokens_are_read(make: Callable[..., HeadKV], tmp_path: Path, archive: str) -> None:
    talk = Talk(make(archive=str(tmp_path) if archive == "DIR" else archive))
    talk.ask(2)
    assert talk.n_read == N_DOCUMENT + N_QUESTION
    for seed in (3, 4, 5):
        n_before = len(talk.tokens)
        talk.ask(seed)
        assert talk.headkv.is_compressed and talk.headkv.plan is not None
        assert talk.headkv.plan.n_prompt == n_before + N_QUESTION
        # the answer is read again but for its last token, which no one has evaluated
        assert talk.n_read == N_ANSWER + N_QUESTION
    assert list(tmp_path.iterdir()) == []


def test_rows_as_generated_are_not_read_again(make: Callable[..., HeadKV]) -> None:
    talk = Talk(make(rereads_answers=False))
    for seed in (2, 3, 4):
        talk.ask(seed)
    assert talk.n_read == 1 + N_QUESTION  # the last token of an answer was not evaluated


@pytest.mark.parametrize("policy", ["snapkv", "adakv+snapkv", "uniform+kvzip", "h2o", "expected-attention"])
def test_the_last_question_chooses_as_if_it_were_the_first(make: Callable[..., HeadKV], policy: str) -> None:
    talk = Talk(make(policy=policy))
    for seed in (2, 3):
        talk.ask(seed)
    asked = [*talk.tokens, *prompt_of(N_QUESTION, 4)]
    last = talk.ask(4)
    whole = make(policy=policy)
    assert answer(whole.llama, asked) == last
    assert kept(whole) == kept(talk.headkv)


@pytest.mark.parametrize("is_regenerated", [False, True])
def test_what_changed_is_read_and_nothing_else(make: Callable[..., HeadKV], is_regenerated: bool) -> None:
    talk = Talk(make())
    for seed in (2, 3):
        talk.ask(seed)
    if is_regenerated:  # the second answer
        asked = talk.tokens[:-N_ANSWER]
        expected_read = 1  # llama-cpp-python evaluates the last token anew
    else:  # the second question, in its middle
        asked = [*talk.tokens[: -N_ANSWER - 10], *prompt_of(40, 9)]
        expected_read = 40
    said = answer(talk.headkv.llama, asked)
    assert talk.n_read <= expected_read + 16  # those that observe are read again
    whole = make()
    assert answer(whole.llama, asked) == said
    assert kept(whole) == kept(talk.headkv)


def test_without_an_archive_later_turns_stay_whole(make: Callable[..., HeadKV]) -> None:
    talk = Talk(make(archive="none"))
    for seed in (2, 3):
        talk.ask(seed)
    native = talk.headkv.native.stats()
    assert native.n_pos_archive == native.bytes_archive == 0
    assert talk.headkv.plan is not None and talk.headkv.plan.n_prompt == N_DOCUMENT + N_QUESTION


def test_the_archive_goes_with_the_conversation(make: Callable[..., HeadKV]) -> None:
    talk = Talk(make())
    talk.ask(2)
    assert talk.headkv.native.stats().bytes_archive > 0
    talk.headkv.clear()
    assert talk.headkv.native.stats().bytes_archive == 0


def test_fast_memory_of_every_turn(make: Callable[..., HeadKV]) -> None:
    talk = Talk(make())
    headkv = talk.headkv
    full = headkv.shape.bytes_per_token()
    for seed in (2, 3, 4, 5):
        headkv.native.reset_peak()
        talk.ask(seed)
        n = len(talk.tokens)
        layer = n * full / headkv.shape.n_layer
        tail = 2 * 64 * full  # cells of the window and the answer
        pages = 64 * 1024 * headkv.shape.n_layer
        assert headkv.native.stats().bytes_peak <= 1.1 * (layer + 0.1 * n * full) + tail + pages


@pytest.mark.parametrize("place", ["nowhere", "/dev/null"])
def test_what_is_no_folder(make: Callable[..., HeadKV], place: str) -> None:
    with pytest.raises(UsageError, match=f"archive {place} is no folder"):
        make(archive=place)


def test_a_disk_that_is_full_reads_as_before(make: Callable[..., HeadKV], tmp_path: Path) -> None:
    """One line says so; the conversation goes on without an archive."""
    folder = tmp_path / "gone"
    folder.mkdir()
    notices: list[str] = []
    headkv = make(archive=str(folder), on_notice=notices.append)
    folder.rmdir()
    talk = Talk(headkv)
    talk.ask(2)
    assert headkv.is_compressed and headkv.native.stats().n_pos_archive == 0
    assert len(notices) == 1 and "no file for rows can be made" in notices[0]
    talk.ask(3)
    assert np.array_equal(headkv.llama.input_ids[: headkv.llama.n_tokens], talk.tokens[:-1])
