"""Without a prefix nothing changes: logits are those of stock llama.cpp bit for bit, memory is what stock allocates.

The NumPy reference, which the other tests rely on, is checked against stock attention here.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pyheadkv.engine.library import library_dir
from pyheadkv.engine.native import context_cells
from tests.e2e.conftest import MakeContext, WriteTiny
from tests.e2e.context import Context, make_tokens, relative_error
from tests.reference.llama import forward
from tests.tiny import Tiny, make_weights

# stock flash attention reads K, V and Q in f16, and adds up V in f16 when it evaluates a single token
STOCK_ERROR = 1e-2

SHAPES = {
    "gqa2": Tiny(),
    "gqa8-d256": Tiny(n_head=(8, 8), n_head_kv=(1, 1), head_size=256),
    "gqa3-d96": Tiny(n_head=(6, 6), n_head_kv=(2, 2), head_size=96),
    "unequal-d80": Tiny(n_head=(6, 4, 3), n_head_kv=(2, 4, 1), head_size=80),
    "mha-d128": Tiny(n_head=(3, 3), n_head_kv=(3, 3), head_size=128),
}
UNEQUAL = SHAPES["unequal-d80"]


@pytest.mark.parametrize("cache_type", ["f32", "f16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_what_stock_computes(open_context: MakeContext, shape: str, cache_type: str) -> None:
    tiny = SHAPES[shape]
    tokens = make_tokens(97, tiny.n_vocab)
    context = open_context(tiny, cache_type=cache_type, attach=False)
    logits = np.concatenate([context.decode(tokens[:60]), context.decode_each(tokens[60:])])
    assert relative_error(logits, forward(tiny, make_weights(tiny), tokens).logits) < STOCK_ERROR


def run_chat(context: Context) -> np.ndarray:
    """A prompt in several batches and ubatches, single tokens across several cell boundaries, a cut, more tokens."""
    tokens = make_tokens(400, 64)
    parts = [context.decode(tokens[:200]), context.decode_each(tokens[200:330])]
    assert context.seq_rm(300)
    context.llama.n_tokens = 300
    return np.concatenate([*parts, context.decode(tokens[300:309]), context.decode_each(tokens[309:320])])


@pytest.mark.parametrize("cache_type", ["f32", "f16", "q8_0", "q4_0"])
def test_attached_without_prefix_is_stock_bit_for_bit(open_context: MakeContext, cache_type: str) -> None:
    options = {"cache_type": cache_type, "n_batch": 96, "n_ubatch": 48}
    tiny = Tiny(n_head=(6, 4), n_head_kv=(2, 4))
    stock = run_chat(open_context(tiny, **options, attach=False))
    np.testing.assert_array_equal(run_chat(open_context(tiny, **options)), stock)


def test_two_threads_are_stock_bit_for_bit(open_context: MakeContext) -> None:
    # with several threads stock splits 512 and more cells among them: a cache of another size adds in another order
    stock = run_chat(open_context(Tiny(), n_threads=2, attach=False))
    np.testing.assert_array_equal(run_chat(open_context(Tiny(), n_threads=2)), stock)


@pytest.mark.parametrize("cache_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("attach", [True, False])
def test_elastic_cache_is_stock_bit_for_bit(open_context: MakeContext, cache_type: str, attach: bool) -> None:
    options = {"cache_type": cache_type, "n_batch": 96, "n_ubatch": 48, "attach": attach}
    stock = run_chat(open_context(Tiny(), **options | {"attach": False}))
    elastic = open_context(Tiny(), **options, n_cells=32)
    np.testing.assert_array_equal(run_chat(elastic), stock)


@contextmanager
def allocated_cells() -> Iterator[list[int]]:
    """Cells of the caches that are created inside, as llama.cpp itself logs them."""
    from llama_cpp import _logger
    from llama_cpp import llama_cpp as bindings

    cells: list[int] = []

    @bindings.llama_log_callback
    def collect(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        found = re.search(rb"llama_kv_cache: size = .*\(\s*(\d+) cells", text)
        if found:
            cells.append(int(found[1]))

    bindings.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield cells
    finally:
        bindings.llama_log_set(_logger.llama_log_callback, ctypes.c_void_p(0))


def test_context_allocates_what_stock_does_unless_asked(open_context: MakeContext) -> None:
    with allocated_cells() as cells:
        open_context(Tiny(), n_ctx=1024, attach=False)
        open_context(Tiny(), n_ctx=1024, n_cells=64, attach=False)
        with context_cells(64):
            pass
        open_context(Tiny(), n_ctx=1024, attach=False)
    assert cells == [1024, 64, 1024]


# both libraries run this, each in a process of its own: argv is model, file for the logits
RUN = """
import sys
import llama_cpp, numpy as np
logits = []
for type_kv, flash_attn in ((0, True), (1, True), (1, False), (8, True)):  # f32, f16, q8_0
    llama = llama_cpp.Llama(sys.argv[1], n_ctx=1024, n_batch=96, n_ubatch=48, n_threads=2, n_threads_batch=2,
                            type_k=type_kv, type_v=type_kv, flash_attn=flash_attn, logits_all=True, verbose=False)
    tokens = np.random.default_rng(0).integers(0, 64, 640).tolist()
    llama.eval(tokens[:250])
    for token in tokens[250:300]:
        llama.eval([token])
    state = llama.save_state()
    llama.eval(tokens[300:400])
    llama.n_tokens = 350  # what comes behind is cut
    llama.eval(tokens[:20])
    logits.append(llama.scores[:370].copy())
    llama.load_state(state)
    llama.eval(tokens[300:640])
    logits.append(llama.scores[300:640].copy())
    llama.reset()
    llama.eval(tokens[:30])
    logits.append(llama.scores[:30].copy())
np.save(sys.argv[2], np.concatenate(logits))
"""


@pytest.fixture
def stock_dir(root: Path) -> Path:
    """Folder with a stock build of the same llama.cpp: HEADKV_STOCK_LIB, or where scripts/check puts it."""
    given = os.environ.get("HEADKV_STOCK_LIB")
    folder = Path(given) if given else root / "build" / "stock" / "bin"
    if not given and "CI" not in os.environ and not folder.is_dir():
        pytest.skip(f"no stock build in {folder}: scripts/check makes one")
    assert any(folder.glob("*llama.*")), f"no library in {folder}"
    return folder


def test_patched_library_is_stock_bit_for_bit(
    library: None, stock_dir: Path, tiny_path: WriteTiny, tmp_path: Path
) -> None:
    logits = []
    for name, folder in (("ours", library_dir()), ("stock", stock_dir)):
        environment = os.environ | {"LLAMA_CPP_LIB_PATH": str(folder)}
        out = tmp_path / f"{name}.npy"
        model = tiny_path(Tiny(n_head=(6, 4), n_head_kv=(2, 4)))
        subprocess.run([sys.executable, "-c", RUN, str(model), str(out)], env=environment, check=True)
        logits.append(np.load(out))
    assert np.isfinite(logits[0]).all()
    np.testing.assert_array_equal(*logits)


def test_stock_library_is_no_other_than_the_pin(stock_dir: Path) -> None:
    """A patched library would compare with itself."""
    stock = next(path for path in stock_dir.iterdir() if path.stem.endswith("llama"))
    for folder, is_patched in ((library_dir(), True), (stock_dir, False)):
        assert (b"headkv_abi_version" in (folder / stock.name).read_bytes()) == is_patched
