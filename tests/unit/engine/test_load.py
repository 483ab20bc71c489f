"""Numbers are checked and whatever fails is one line, before or instead of what llama.cpp and its bindings would do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest

from pyheadkv.engine import load as loading
from pyheadkv.errors import ModelError, UsageError

METADATA = {"general.architecture": "llama", "llama.block_count": 1}


class Fake:
    """Stands for llama_cpp.Llama: remembers its options, or fails as it is told."""

    options: ClassVar[dict[str, Any]] = {}
    error: BaseException | None = None
    log: tuple[str, ...] = ()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    class Bindings(Fake):
        pass

    @contextmanager
    def log_lines(lines: list[str], **_: bool) -> Iterator[None]:
        lines += Bindings.log
        yield

    def make(path: str, **options: Any) -> object:
        Bindings.options = options
        if Bindings.error:
            raise Bindings.error
        return object()

    @contextmanager
    def nothing(*_: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(loading, "log_lines", log_lines)
    monkeypatch.setattr(loading, "context_cells", nothing)
    monkeypatch.setattr(loading, "read_gguf_metadata", lambda path: METADATA)
    monkeypatch.setattr(loading, "deferred_compilation", nothing)
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", type("llama_cpp", (), {"Llama": staticmethod(make)}))
    return Bindings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_ctx": -1}, "n_ctx is -1, expected a whole number from 0 to 268435456"),
        ({"n_ctx": 2**32}, "n_ctx is 4294967296, expected a whole number from 0 to 268435456"),
        ({"n_ctx": 512.0}, r"n_ctx is 512\.0, expected a whole number"),
        ({"n_ctx": True}, "n_ctx is True, expected a whole number"),
        ({"n_ctx": "many"}, "n_ctx is 'many', expected a whole number"),
        ({"n_threads": -3}, "n_threads is -3, expected a whole number of at least 0"),
        ({"n_threads": 1.5}, r"n_threads is 1\.5, expected a whole number"),
        ({"n_threads_batch": -1}, "n_threads_batch is -1"),
        ({"n_batch": 0}, "n_batch is 0, expected a whole number from 1 to 16384"),
        ({"n_batch": 10**6}, "n_batch is 1000000"),
        ({"n_gpu_layers": -2}, "n_gpu_layers is -2, expected a whole number from -1 to"),
        ({"n_gpu_layers": 2**40}, "n_gpu_layers is 1099511627776"),
        ({"n_cells": -64}, "n_cells is -64"),
    ],
)
def test_numbers_out_of_range_are_named(fake: type[Fake], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        loading.load("m.gguf", **options)
    assert not fake.options


def test_numpy_numbers_are_numbers(fake: type[Fake]) -> None:
    loading.load("m.gguf", n_ctx=np.int64(512), n_threads=np.uint8(1))
    assert (fake.options["n_ctx"], fake.options["n_threads"]) == (512, 1)


@pytest.mark.parametrize("name", ["n_threads", "n_threads_batch"])
def test_more_threads_than_cpus_are_as_many_with_a_notice(fake: type[Fake], name: str) -> None:
    notices: list[str] = []
    loading.load("m.gguf", **{name: 100_000}, on_notice=notices.append)
    assert fake.options[name] == os.cpu_count()
    assert notices == [f"{name} 100000 is more than this machine has CPUs: {os.cpu_count()} are used"]


@pytest.mark.parametrize("n_threads", [None, 0])
def test_by_default_all_cpus_of_the_process_are_used(fake: type[Fake], n_threads: int | None) -> None:
    loading.load("m.gguf", n_threads=n_threads)
    assert 1 <= fake.options["n_threads"] <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("error", "log", "words"),
    [
        (MemoryError(), (), "out of memory"),
        (ValueError("no such\nfile"), (), "no such file"),
        (AssertionError(), (), "AssertionError"),
        (KeyError("eos"), (), "'eos'"),
        (ValueError("Failed to create context"), ("f: a first complaint", "g: too large"), "g: too large"),
        (ValueError("Failed to load"), ("f: wrong shape", "g: failed to load model"), "f: wrong shape"),
        (ValueError("Failed to load"), ("g: failed to load model",), "Failed to load"),
    ],
)
def test_whatever_fails_is_one_line(fake: type[Fake], error: Exception, log: tuple[str, ...], words: str) -> None:
    fake.error, fake.log = error, log
    with pytest.raises(ModelError) as raised:
        loading.load("m.gguf")
    assert str(raised.value) == f"m.gguf cannot be loaded: {words}"


def test_ctrl_c_goes_through(fake: type[Fake]) -> None:
    fake.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        loading.load("m.gguf")


def test_what_cannot_generate_is_refused_before_it_is_loaded(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "read_gguf_metadata", lambda path: {"general.architecture": "bert"})
    with pytest.raises(ModelError, match="architecture bert is an encoder"):
        loading.load("m.gguf")
    assert not fake.options


def test_a_model_without_vocabulary_refuses_text(fake: type[Fake], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "read_gguf_metadata", lambda path: METADATA | {"tokenizer.ggml.model": "none"})
    loading.load("m.gguf")
    for name in ("tokenize", "detokenize"):
        with pytest.raises(ModelError, match=r"m\.gguf has no vocabulary: it takes tokens, and no text"):
            getattr(fake.options["tokenizer"], name)(b"text")
