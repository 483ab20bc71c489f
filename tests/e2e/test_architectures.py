"""Every architecture of the pinned llama.cpp is loaded and compressed, loaded and said why not, or refused.

Nothing crashes, with a cache that starts small and with one of full size, and what pyheadkv says of a file's keys is
what the native side says of its cache. What is compressed is read layer by layer too, as stock reads it, or says why
not. One architecture of each family is tried in every run, all of them with -m slow.

    pytest tests/e2e/test_architectures.py -m slow --update-golden      writes the table in native/README.md anew
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pyheadkv.errors import HeadKVError
from pyheadkv.files.measured import Block
from tests import architectures
from tests.conftest import ROOT

TREE = ROOT / "build" / "release" / "upstream"
README, TABLE = ROOT / "native" / "README.md", "layers"
LIMIT_S = 600
MAX_ERROR = 1e-2  # every row is kept; only the order of sums differs

# the families, by what llama.cpp's memory and attention make of them
_FAMILIES_NAMES = """
    llama qwen2 qwen3moe phi3 granite glm4 minicpm3 smollm3 gpt2 mistral3 hrm_text nanbeige gemma3 gemma4
    gpt-oss llama4 jamba falcon-h1 lfm2 qwen35 kimi-linear mamba rwkv7 deepseek2 qwen2vl bloom graniteswitch
    deepseek32 deepseek4 minimax-m3 bert llama-embed t5 dream eagle3 clip plm gptj grok"""
FAMILIES = _FAMILIES_NAMES.split()
ALL = (*architectures.names(TREE), *architectures.VARIANTS) if TREE.is_dir() else ()
FAMILY_VARIANTS = ["deepseek2, not absorbed", "llama, both ways", "deci, a layer without attention"]


@pytest.fixture(scope="module")
def tree(library: None) -> Path:
    """The patched tree that the library was built from."""
    if not TREE.is_dir():
        pytest.skip(f"no folder {TREE}")
    return TREE


@functools.cache
def tried(names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What tests/e2e/try_architectures.py says of each."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.e2e.try_architectures", folder, *names],
            cwd=ROOT,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            stdout=subprocess.PIPE,
            text=True,
            timeout=LIMIT_S,
            check=True,
        )
    return {report.pop("name"): report for report in map(json.loads, done.stdout.splitlines())}


def check(report: dict[str, Any]) -> None:
    """One architecture went as it should."""
    assert report.get("outcome") != "crashed", report["words"]
    small, full = report["small"], report["full"]
    assert small["outcome"] == full["outcome"]
    for start in (small, full):
        if start["outcome"] == "compressed":
            assert report["reason"] is None
            assert start["layers"] == report["layers"]
            assert start["error"] < MAX_ERROR
            assert start["n_rows_hot"] > 0
            assert start.get("differs", []) == []
            assert start["crosses"] == small["crosses"]
        else:
            assert report["reason"], f"the native side says {start['words']}"
            assert start["words"]
            assert "\n" not in start["words"]
        assert start.get("is_finite", True)


@pytest.mark.parametrize("name", [*FAMILIES, *FAMILY_VARIANTS])
def test_one_of_each_family(tree: Path, name: str) -> None:
    check(tried((*FAMILIES, *FAMILY_VARIANTS))[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_all(library: None, name: str) -> None:
    check(tried(ALL)[name])


# ---- the table of what is read layer by layer ----


WRITER = "`pytest tests/e2e/test_architectures.py -m slow --update-golden` (a tiny model of each architecture)"


def swept_as(reports: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Of each architecture that is compressed: what crosses between its layers, or ""."""
    starts = {name: report["small"] for name, report in reports.items()}
    return {name: start["crosses"] for name, start in starts.items() if start["outcome"] == "compressed"}


def table_of(swept: dict[str, str]) -> str:
    """Architectures by what stands against cutting their graphs, those that can be cut first."""
    by_reason: dict[str, list[str]] = {"": []}
    for name in sorted(swept):
        by_reason.setdefault(swept[name], []).append(name.replace(", ", ": "))
    lines = [f"| {reason or 'nothing'} | {', '.join(names)} |" for reason, names in by_reason.items()]
    return "\n".join([WRITER, "", "| what crosses beside the hidden states | architectures |", "|---|---|", *lines])


def written_table() -> dict[str, str]:
    """As `swept_as`, from native/README.md."""
    text = (
        README.read_text(encoding="utf-8")
        .partition(f"<!-- measured: {TABLE} -->")[2]
        .partition("<!-- /measured -->")[0]
    )
    rows = [line.strip("| ").split(" | ") for line in text.strip().splitlines() if line.startswith("|")][2:]
    return {
        name.replace(": ", ", "): "" if reason == "nothing" else reason
        for reason, names in rows
        for name in names.split(", ")
    }


def test_table_tells_of_each_family(tree: Path) -> None:
    names = (*FAMILIES, *FAMILY_VARIANTS)
    swept, written = swept_as(tried(names)), written_table()
    assert swept == {name: reason for name, reason in written.items() if name in names}
    assert set(swept.values()) > {""}, "one of them cannot be cut"


@pytest.mark.slow
def test_table_tells_of_all(tree: Path, update_golden: bool) -> None:
    swept = swept_as(tried(ALL))
    if update_golden:
        Block(README, TABLE).write(table_of(swept), HeadKVError)
    assert swept == written_table()


def test_what_cannot_be_made_is_known_to_llama_cpp_and_refused(tree: Path) -> None:
    names = architectures.names(tree)
    assert len(names) == len(set(names)) == 153
    assert set(architectures.UNMADE) < set(names)
    assert len(architectures.UNMADE) == 4
    assert {arch for arch, _ in architectures.VARIANTS.values()} <= set(names)
    for name, report in tried(tuple(architectures.UNMADE)).items():
        check(report)
        assert report["small"]["outcome"] == "refused", name
