"""Fixtures of the end-to-end tests: tiny models (written once each), contexts that are closed again, the demo model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyheadkv.engine.native import abi_version, debug_alloc_fail
from pyheadkv.engine.sources import demo_model
from pyheadkv.errors import LibraryError, ModelError
from tests.e2e.context import Context
from tests.tiny import Tiny, write_refused, write_tiny

WriteTiny = Callable[[Tiny], Path]
MakeContext = Callable[..., Context]


@pytest.fixture(scope="session")
def library() -> None:
    """The patched library; without it there is nothing to test here."""
    try:
        abi_version()
    except LibraryError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> WriteTiny:
    """File of a tiny model, written the first time it is asked for."""
    folder, paths = tmp_path_factory.mktemp("tiny"), {}

    def write(tiny: Tiny) -> Path:
        if tiny not in paths:
            paths[tiny] = write_tiny(folder / f"{len(paths)}.gguf", tiny)
        return paths[tiny]

    return write


@pytest.fixture(scope="session")
def refused_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """File of an architecture that cannot be compressed."""
    folder = tmp_path_factory.mktemp("refused")
    return lambda arch: write_refused(folder / f"{arch}.gguf", arch)


@pytest.fixture(scope="session")
def demo_path() -> Path:
    """The demo model; it must be had where the environment says CI."""
    try:
        return demo_model()
    except ModelError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))


@pytest.fixture
def open_context(library: None, tiny_path: WriteTiny) -> Iterator[MakeContext]:
    """Context of a tiny model or a file; closed after the test."""
    contexts: list[Context] = []

    def make(model: Tiny | Path, **options: Any) -> Context:
        contexts.append(Context(tiny_path(model) if isinstance(model, Tiny) else model, **options))
        return contexts[-1]

    yield make
    debug_alloc_fail(0)
    for context in contexts:
        context.close()
