"""The checks that users run pass here, on the demo and on tiny models, and fail when something is broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.engine.devices import devices, system_info
from pyheadkv.engine.native import Compression, Native
from pyheadkv.evaluate import selftest
from pyheadkv.evaluate.selftest import run_checks
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.shape import shape_from_metadata
from tests.e2e.conftest import WriteTiny
from tests.e2e.test_cli import run
from tests.tiny import Tiny

TINY = Tiny(n_head=(6, 4), n_head_kv=(2, 4))


def failed(path: Path, type_k: str = "f16", type_v: str = "f16") -> list[str]:
    shape = shape_from_metadata(read_gguf_metadata(path))
    return [it.name for it in run_checks(path, shape, type_k, type_v, n_threads=1) if not it.is_passed]


@pytest.mark.parametrize("types", [("f16", "f16"), ("q8_0", "q4_0")], ids="/".join)
def test_checks_pass(library: None, tiny_path: WriteTiny, types: tuple[str, str]) -> None:
    assert failed(tiny_path(TINY), *types) == []


def broken_compress(stock: Callable[..., None]) -> Callable[..., None]:
    """Keeps fewer rows than it is asked for."""

    def compress(self: Native, compression: Compression) -> None:
        stock(self, replace(compression, rows=np.full_like(compression.rows, 20)))

    return compress


def test_rows_that_are_missing_are_found(library: None, tiny_path: WriteTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Native, "compress", broken_compress(Native.compress))
    assert failed(tiny_path(TINY)) == ["every row kept = stock", "memory is what was planned"]


def test_another_computation_is_found(library: None, tiny_path: WriteTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = selftest._next

    def differently(llama: Any, tokens: list[int]) -> Any:
        return plain(llama, tokens) * np.float32(1.5 if next(calls) in (2, 5) else 1)  # not stock, which is first

    calls = iter(range(100))
    monkeypatch.setattr(selftest, "_next", differently)
    assert failed(tiny_path(TINY)) == ["nothing compressed = stock", "our kernel = upstream's operations"]


def test_command(library: None, demo_path: Path) -> None:
    done = run("selftest", demo_path, "-t", "1")
    assert done.returncode == 0 and "all 5 checks passed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.startswith("pyheadkv ") and str(Path.home()) + "/" not in done.stdout
    facts = run("--version", "--verbose").stdout
    assert facts.splitlines()[:9] == done.stdout.splitlines()[:9]
    assert run("selftest", demo_path, "-ctk", "q4").returncode == 1


def test_devices(library: None) -> None:
    (cpu, *_) = devices()
    assert cpu.name == "CPU" and 0 < cpu.bytes_free <= cpu.bytes_total
    assert "CPU" in system_info()
