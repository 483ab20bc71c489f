"""While a prompt is read layer by layer, the rows of one layer are in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyheadkv.engine.native import Compression, Observe
from pyheadkv.policy.scorers import Scorer
from tests.conftest import ROOT
from tests.e2e.conftest import MakeContext, WriteTiny
from tests.e2e.context import Context, make_tokens
from tests.tiny import Tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages in memory are counted on Linux alone")

N_LAYER, N_POS = 8, 1000
WIDE = Tiny(n_head=(2,) * N_LAYER, n_head_kv=(2,) * N_LAYER, head_size=256)  # 4 MiB a layer
TOKENS = make_tokens(N_POS + 50, WIDE.n_vocab)
OPTIONS = {"n_ctx": 1024, "n_cells": 64, "cache_type": "f32", "logits_all": False}
HOW = Scorer(n_obs=16)
# pages are given back in areas of 64 KiB, K and V of each layer
SLACK = 1.1


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder whose files need not lie in memory."""
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True
    ).stdout.strip()
    if kind in ("tmpfs", "ramfs"):
        pytest.skip(f"{tmp_path} is a {kind}: its files are memory (pytest --basetemp)")
    return tmp_path


def bytes_full(context: Context) -> int:
    """Of all rows."""
    layers = zip(context.native.layers(), context.native.row_bytes(), strict=True)
    return context.n_pos * sum(layer.n_head_kv * size for layer, size in layers)


def open_files(folder: Path) -> list[str]:
    """Files in a folder that this process has open, those without a name too."""
    targets = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [target for target in targets if target.startswith(str(folder))]


@pytest.mark.parametrize("n_block", [N_POS, 300])
def test_one_layer_is_in_memory_at_a_time(open_context: MakeContext, disk: Path, n_block: int) -> None:
    context = open_context(WIDE, **OPTIONS)
    context.native.reset_peak()
    context.read(TOKENS[:N_POS], folder=disk, bytes_hidden=n_block * WIDE.n_embd * 4)
    stats, full = context.native.stats(), bytes_full(context)
    assert stats.bytes_peak <= full / N_LAYER * SLACK
    assert stats.bytes_peak >= full / N_LAYER * n_block / N_POS, "a layer is in memory while it is computed"
    assert stats.bytes_tail == 0
    assert full <= stats.bytes_archive <= full * SLACK

    whole = open_context(WIDE, **OPTIONS)
    whole.native.reset_peak()
    whole.llama.eval(TOKENS[:N_POS])
    assert whole.native.stats().bytes_peak >= full, "the bound above can be missed"


def test_in_host_memory_all_rows_are_there(open_context: MakeContext) -> None:
    context = open_context(WIDE, **OPTIONS)
    context.native.reset_peak()
    context.read(TOKENS[:N_POS])
    full = bytes_full(context)
    assert full <= context.native.stats().bytes_peak <= full * SLACK


def test_compressing_reads_a_layer_at_a_time(open_context: MakeContext, disk: Path) -> None:
    context = open_context(WIDE, **OPTIONS)
    context.native.reset_peak()
    context.read(TOKENS[:N_POS], folder=disk, observe=Observe(HOW.n_obs))
    full = bytes_full(context)
    context.native.compress(Compression(np.full(2 * N_LAYER, 50), HOW, 4))
    stats = context.native.stats()
    observed = sum(WIDE.n_head) * N_POS * 4
    assert stats.bytes_archive == stats.bytes_observed == 0
    assert stats.bytes_peak <= full / N_LAYER * SLACK + stats.bytes_hot + stats.bytes_tail + observed
    context.native.reset_peak()
    assert context.native.stats().bytes_peak == stats.bytes_hot + stats.bytes_tail


def test_the_file_has_no_name_and_goes(open_context: MakeContext, disk: Path) -> None:
    context = open_context(WIDE, **OPTIONS)

    def look(n_done: int, n_total: int) -> None:
        assert len(open_files(disk)) == 1

    for end in ("compressed", "cleared", "failed", "closed"):
        assert open_files(disk) == []
        if end == "failed":
            with pytest.raises(ZeroDivisionError):
                context.read(TOKENS[:40], folder=disk, on_progress=lambda n_done, n_total: 1 / 0)
            continue
        context.read(TOKENS[:40], folder=disk, on_progress=look)
        assert len(open_files(disk)) == 1
        assert not list(disk.iterdir())
        if end == "compressed":
            context.native.keep([range(20)] * (2 * N_LAYER), 8)
            assert open_files(disk) == []
            context.seq_rm(0)
            context.llama.reset()
        elif end == "cleared":
            context.llama._ctx.kv_cache_clear()
            context.llama.reset()
            assert context.native.stats().bytes_archive == 0
    context.close()
    assert open_files(disk) == []


# argv: model, folder for the rows or "" for llama_decode, tokens; prints how far the resident set grew, in KiB
RUN = """
import re, sys
from pathlib import Path
from tests.e2e.context import Context, make_tokens
path, folder, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
context = Context(Path(path), n_ctx=n + 24, n_cells=64, n_threads=1, logits_all=False)
def resident(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
tokens = make_tokens(n, 64)
context.llama.eval(tokens[:1])  # weights
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the highest is forgotten
context.read(tokens[1:], folder=Path(folder)) if folder else context.llama.eval(tokens[1:])
print(resident("VmHWM") - before)
"""


def growth(model: Path, folder: str, n_tokens: int) -> int:
    """Bytes that a process takes while it reads."""
    command = [sys.executable, "-c", RUN, str(model), folder, str(n_tokens)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return 1024 * int(done.stdout.split()[-1])


def check_growth(model: Path, disk: Path, n_tokens: int, bytes_rows: int) -> None:
    """The rows of a stock cache are in the process, those of layers that are read one by one are not."""
    stock, ours = growth(model, "", n_tokens), growth(model, str(disk), n_tokens)
    assert stock > 0.8 * bytes_rows
    assert stock - ours > 0.5 * bytes_rows


def test_process_of_a_wide_model(library: None, tiny_path: WriteTiny, disk: Path) -> None:
    check_growth(tiny_path(WIDE), disk, N_POS, N_LAYER * 2 * 2 * 256 * 2 * N_POS)


@pytest.mark.slow
def test_process_of_the_demo_model(library: None, demo_path: Path, disk: Path) -> None:
    check_growth(demo_path, disk, 2048, 30 * 3 * 2 * 64 * 2 * 2048)
