"""Every architecture of the pinned llama.cpp is loaded and compressed, loaded and said why not, or refused.

Nothing crashes, with a cache that starts small and with one of full size, and what pyheadkv says of a file's keys is
what the native side says of its cache. What is compressed gives the logits of the masked oracle, and is read layer by
layer too, as stock reads it, or says why not. One architecture of each family is tried in every run, all of them with
-m slow.

    pytest tests/e2e/test_architectures.py -m slow --update-golden      writes the table in native/README.md anew
    pytest tests/e2e/test_architectures.py -k support --update-golden   writes the other one
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from pyheadkv.errors import HeadKVError
from pyheadkv.files.measured import Block
from pyheadkv.model.keys import Metadata, layer_count, per_layer
from pyheadkv.model.layers import has_state, has_window
from pyheadkv.model.support import unsupported_reason
from tests import architectures
from tests.conftest import ROOT

TREE = ROOT / "build" / "release" / "upstream"
README, TABLE, SUPPORT = ROOT / "native" / "README.md", "layers", "support"
LIMIT_S = 600
# of what the rows that are not kept change: only rounding differs from the masked oracle
MAX_SHARE = 0.05
MIN_EFFECT = 5e-3

# the families, by what llama.cpp's memory and attention make of them
_FAMILIES_NAMES = """
    llama qwen2 qwen3moe phi3 granite glm4 minicpm3 smollm3 gpt2 mistral3 hrm_text nanbeige gemma3 gemma4
    gpt-oss llama4 jamba falcon-h1 lfm2 qwen35 kimi-linear mamba rwkv7 deepseek2 qwen2vl bloom graniteswitch
    deepseek32 deepseek4 minimax-m3 bert llama-embed t5 dream eagle3 clip plm gptj grok"""
FAMILIES = _FAMILIES_NAMES.split()
ALL = (*architectures.names(TREE), *architectures.VARIANTS) if TREE.is_dir() else ()
FAMILY_VARIANTS = ["deepseek2, not absorbed", "llama, both ways", "deci, a layer without attention"]
FAMILY_VARIANTS += [
    name for name in architectures.VARIANTS if name.startswith(("gemma3, a KV", "gemma4, l", "qwen2vl"))
]


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
            assert start["beside"] == report["beside"]
            assert start["error"] < MAX_SHARE * start["effect"]
            assert start["effect"] > MIN_EFFECT
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


# ---- the table of what is supported ----


SUPPORT_WRITER = "`pytest tests/e2e/test_architectures.py -k support --update-golden` (keys of a tiny model of each)"


def keys_by_name() -> dict[str, list[Metadata]]:
    """Of each architecture, its tiny model's GGUF keys, and those of its variants."""
    names, by_name = architectures.names(TREE), {}
    for name in names:
        changes = [{}, *(change for arch, change in architectures.VARIANTS.values() if arch == name)]
        by_name[name] = [architectures.metadata_of(name, change) for change in changes]
    return by_name


def kind_of(metadata: Metadata) -> str:
    """What of a model's cache is compressed."""
    arch = str(metadata["general.architecture"])
    n_block = layer_count(metadata, arch)[0]
    n_head_kv = per_layer(metadata, f"{arch}.attention.head_count_kv", n_block)
    if any(has_window(metadata, arch, n_block)):
        return "layers beside sliding windows"
    return "layers beside recurrent states" if any(has_state(metadata, arch, n_head_kv)) else "every layer"


def reason_of(metadata: Metadata) -> str:
    """Why nothing is compressed, without the name and numbers of the model."""
    reason = str(unsupported_reason(metadata)).removeprefix(f"architecture {metadata['general.architecture']} ")
    return re.sub(", rank [0-9]+", "", reason)


def by_support() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Architectures by what of their cache is compressed, and the others by why nothing is."""
    kinds, reasons = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for name, files in keys_by_name().items():
        accepted = [metadata for metadata in files if unsupported_reason(metadata) is None]
        if accepted:  # a file of another size may have windows
            kinds[max(map(kind_of, accepted))].append(name)
        else:
            reasons[f"nothing, the model {reason_of(files[0])}"].append(name)
    return kinds, reasons


def support_table() -> str:
    """Those first of which something is compressed."""
    rows = [row for names in by_support() for row in sorted(names.items(), key=_most_first)]
    table = [f"| {what} | {len(names)} | {', '.join(names)} |" for what, names in rows]
    return "\n".join([SUPPORT_WRITER, "", "| what is compressed | | architectures |", "|---|---|---|", *table])


def _most_first(item: tuple[str, list[str]]) -> tuple[int, str]:
    return -len(item[1]), item[0]


def test_support_table_is_what_the_keys_tell(tree: Path, update_golden: bool) -> None:
    table = support_table()
    if update_golden:
        Block(README, SUPPORT).write(table, HeadKVError)
    assert f"<!-- measured: {SUPPORT} -->\n{table}\n<!-- /measured -->" in README.read_text(encoding="utf-8")
    n_compressed = sum(map(len, by_support()[0].values()))
    assert f" {n_compressed} of {len(keys_by_name())} architectures" in (ROOT / "README.md").read_text(encoding="utf-8")
