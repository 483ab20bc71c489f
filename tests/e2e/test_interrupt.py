"""Ctrl-C while a prompt is read: it comes out soon, and the session is as if the message had not been sent.

The signal is raised inside llama_decode, after the n-th operation; so no test waits for a time.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from pyheadkv.calibrate.observer import Observer
from pyheadkv.chat.session import HeadKV, load
from pyheadkv.engine.native import Native
from tests.e2e.test_session import N_PROMPT, answer, logits, prompt_of, tiny

__all__ = ["tiny"]

POLICIES = ("snapkv", "kvzip", "expected-attention", "snapkv:lookahead=4")
N_APART = 37  # operations between the moments that are tried, as odd as can be


class Raiser:
    """Sends a signal to this process after the n-th operation of the graphs to come; counts them all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
        self.at = -1
        self.n_asked = 0
        self.n_signals = 0
        stock = Native.abortable

        def abortable(native: Native, is_stopped: Callable[[], bool]) -> AbstractContextManager[None]:
            def asked() -> bool:
                self.n_asked += 1
                if self.n_asked == self.at:
                    self.n_signals += 1
                    signal.raise_signal(number)
                return is_stopped()

            return stock(native, asked)

        monkeypatch.setattr(Native, "abortable", abortable)

    def arm(self, at: int) -> None:
        self.at, self.n_asked = at, 0


@pytest.fixture(autouse=True)
def python_handler() -> Iterator[None]:
    """A job in the background of a shell ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def open_llama(tiny: Path) -> Iterator[Callable[[], Any]]:
    llamas: list[Any] = []

    def make() -> Any:
        # several ubatches a batch: those before the one that is stopped stay in llama.cpp's cache
        llamas.append(load(tiny, n_ctx=2048, n_threads=1, n_batch=256, n_ubatch=64))
        return llamas[-1]

    yield make
    for llama in llamas:
        llama.close()


@pytest.mark.parametrize("policy", POLICIES)
def test_at_any_moment_the_next_call_is_as_never_interrupted(
    open_llama: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    fresh = open_llama()
    HeadKV(fresh, policy=policy)
    expected = answer(fresh, prompt_of(N_PROMPT))
    raiser = Raiser(monkeypatch)
    llama = open_llama()
    headkv = HeadKV(llama, policy=policy)
    for n in count(1):
        raiser.arm(n * N_APART * n)
        try:
            answered = answer(llama, prompt_of(N_PROMPT))
        except KeyboardInterrupt:
            assert raiser.n_asked == raiser.at  # at once
            assert headkv.native.stats().n_pos == llama.n_tokens < N_PROMPT
            assert not headkv.is_compressed and headkv.native.stats().bytes_observed == 0
            answered = answer(llama, prompt_of(N_PROMPT))
        assert answered == expected
        np.testing.assert_array_equal(logits(llama), logits(fresh))
        headkv.clear()
        if raiser.at > raiser.n_asked:
            break
    assert n > 3


def test_a_turn_on_a_compressed_cache(open_llama: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = prompt_of(N_PROMPT), prompt_of(200, seed=2)
    llama, fresh = open_llama(), open_llama()
    for each in (llama, fresh):
        HeadKV(each)
    first += answer(llama, first)
    raiser = Raiser(monkeypatch)
    raiser.arm(100)
    with pytest.raises(KeyboardInterrupt):
        answer(llama, first + second)
    answer(fresh, first[:N_PROMPT])
    assert answer(llama, first + second) == answer(fresh, first + second)
    np.testing.assert_array_equal(logits(llama), logits(fresh))


def test_another_prompt_after_it(open_llama: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    llama, fresh = open_llama(), open_llama()
    for each in (llama, fresh):
        HeadKV(each)
    Raiser(monkeypatch).arm(300)
    with pytest.raises(KeyboardInterrupt):
        answer(llama, prompt_of(N_PROMPT))
    other = prompt_of(600, seed=3)
    assert answer(llama, other) == answer(fresh, other)
    np.testing.assert_array_equal(logits(llama), logits(fresh))


def test_sigterm_leaves_too(open_llama: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        llama = open_llama()
        HeadKV(llama)
        Raiser(monkeypatch, signal.SIGTERM).arm(50)
        with pytest.raises(SystemExit, match="143"):
            answer(llama, prompt_of(N_PROMPT))
        assert signal.getsignal(signal.SIGTERM) is leave
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_that_raises_nothing_stops_nothing(
    open_llama: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    llama, fresh = open_llama(), open_llama()
    for each in (llama, fresh):
        HeadKV(each)
    expected = answer(fresh, prompt_of(N_PROMPT))
    Raiser(monkeypatch).arm(50)
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    assert answer(llama, prompt_of(N_PROMPT)) == expected and seen == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_no_callback_stays(open_llama: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next decode would call what is gone."""
    llama = open_llama()
    headkv = HeadKV(llama)
    raiser = Raiser(monkeypatch)
    answer(llama, prompt_of(N_PROMPT))
    n_asked = raiser.n_asked
    headkv.close()
    answer(llama, prompt_of(300, seed=5))
    assert n_asked > 100 and raiser.n_asked == n_asked


def test_measuring_stops_as_soon(open_llama: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    observer = Observer(open_llama())
    raiser = Raiser(monkeypatch)
    raiser.arm(50)
    with pytest.raises(KeyboardInterrupt):
        observer.read(prompt_of(256))
    assert raiser.n_asked == 50
