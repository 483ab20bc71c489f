"""What cannot be exact is refused with a reason and changes nothing: the logits that follow tell."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.engine.native import Compression
from pyheadkv.errors import ModelError, NativeError
from pyheadkv.policy.retrieval_heads import HeadScoring
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context, Logits
from tests.e2e.ragged import N_OBS, N_POS, N_PREFIX, chat_tokens, flat, make_kept
from tests.tiny import REFUSED, Tiny

STATUS_INVALID_ARGUMENT, STATUS_WRONG_STATE = -1, -3  # enum headkv_status

TINY = Tiny(n_head=(6, 4), n_head_kv=(2, 4))
TOKENS = chat_tokens(TINY)
KEPT = make_kept(TINY, (17, 0, 97, 1))
N_HEADS = 6
HOW = Scorer(n_obs=N_OBS)


def compressed_context(open_context: MakeContext, **options: Any) -> Context:
    context = open_context(TINY, **options)
    context.decode(TOKENS[:N_POS])
    context.native.keep(flat(KEPT), N_OBS)
    context.decode(TOKENS[N_POS : N_POS + 5])
    return context


def go_on(context: Context) -> Logits:
    """Logits of some more tokens, single and together."""
    first = context.n_pos
    single = context.decode_each(TOKENS[first : first + 3])
    return np.concatenate([single, context.decode(TOKENS[first + 3 : first + 10])])


def memory_call(name: str, *arguments: int) -> Callable[[Context], Any]:
    """A llama_memory_* function, called on the context's memory."""
    import llama_cpp

    return lambda context: getattr(llama_cpp, f"llama_memory_{name}")(context.llama._ctx.memory, *arguments)


REFUSED_CALLS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "cut inside the prefix": (("seq_rm", 0, 100, -1), False),
    "cut at the last prefix row": (("seq_rm", 0, N_PREFIX - 1, -1), False),
    "cut of any sequence": (("seq_rm", -1, 1, -1), False),
    "hole in the prefix": (("seq_rm", 0, 0, 50), False),
    "hole across its end": (("seq_rm", 0, 120, N_PREFIX + 2), False),
    "shift": (("seq_add", 0, 0, -1, 3), None),
    "shift of the tail": (("seq_add", 0, N_PREFIX, -1, 3), None),
    "divide": (("seq_div", 0, 0, -1, 2), None),
    "copy": (("seq_cp", 0, 0, 0, -1), None),
    "can shift": (("can_shift",), False),
}


@pytest.mark.parametrize("what", REFUSED_CALLS)
def test_refused_call_changes_nothing(open_context: MakeContext, what: str) -> None:
    undisturbed, context = (compressed_context(open_context) for _ in range(2))
    (name, *arguments), answer = REFUSED_CALLS[what]
    before = context.native.stats()
    assert memory_call(name, *arguments)(context) == answer
    assert context.native.stats() == before
    np.testing.assert_array_equal(go_on(context), go_on(undisturbed))


def test_shift_is_possible_without_a_prefix(open_context: MakeContext) -> None:
    context = open_context(TINY)
    assert memory_call("can_shift")(context) is True


def test_cut_in_the_tail_takes_tokens_back(open_context: MakeContext) -> None:
    context, undisturbed = (compressed_context(open_context) for _ in range(2))
    context.decode(TOKENS[:7])
    assert context.seq_rm(N_POS + 5)
    context.llama.n_tokens = N_POS + 5
    np.testing.assert_array_equal(go_on(context), go_on(undisturbed))
    assert context.seq_rm(N_PREFIX)  # the whole tail, and nothing of the prefix
    assert context.native.stats().n_pos == N_PREFIX
    context.llama.n_tokens = N_PREFIX
    assert context.native.stats().n_rows_hot == sum(map(len, flat(KEPT)))


@pytest.mark.parametrize(
    "how",
    [("seq_rm", 0, 0, -1), ("seq_rm", -1, -1, -1), ("seq_rm", 0, 0, N_POS + 99), ("clear", 1), ("seq_keep", 1)],
    ids=str,
)
def test_removing_everything_drops_the_prefix(open_context: MakeContext, how: tuple[Any, ...]) -> None:
    context, fresh = compressed_context(open_context), open_context(TINY)
    memory_call(*how)(context)
    stats = context.native.stats()
    assert (stats.n_pos_hot, stats.n_rows_hot, stats.bytes_hot) == (0, 0, 0)
    assert all(len(head) == 0 for layer in context.kept() for head in layer)
    memory_call("clear", 1)(context)
    context.llama.n_tokens = 0
    np.testing.assert_array_equal(context.decode(TOKENS[:N_POS]), fresh.decode(TOKENS[:N_POS]))
    np.testing.assert_array_equal(go_on(context), go_on(fresh))


def test_state_is_not_saved_and_the_context_goes_on(open_context: MakeContext) -> None:
    import llama_cpp

    undisturbed, context = (compressed_context(open_context) for _ in range(2))
    ctx, n_bytes = context.llama._ctx.ctx, 1 << 20
    state = (ctypes.c_uint8 * n_bytes)()
    assert llama_cpp.llama_state_get_size(ctx) == 0
    assert llama_cpp.llama_state_get_data(ctx, state, n_bytes) == 0
    assert llama_cpp.llama_state_seq_get_data(ctx, state, n_bytes, 0) == 0
    np.testing.assert_array_equal(go_on(context), go_on(undisturbed))


def test_state_of_a_whole_cache_is_saved_and_loaded(open_context: MakeContext) -> None:
    saved, loaded = open_context(TINY), open_context(TINY)
    saved.decode(TOKENS[:N_POS])
    loaded.decode(TOKENS[:3])
    loaded.native.reserve(N_POS)
    loaded.llama.load_state(saved.llama.save_state())
    np.testing.assert_array_equal(go_on(loaded), go_on(saved))


# ---- calls of our own ----


def rows(*values: int) -> np.ndarray:
    return np.array(values or (60,) * N_HEADS)


def with_head(position: int, positions: list[int]) -> list[Any]:
    heads: list[Any] = [[3]] * N_HEADS
    heads[position] = positions
    return heads


INVALID: dict[str, tuple[Callable[[Context], Any], str]] = {
    "fewer rows than sinks and window": (
        lambda c: c.native.compress(Compression(rows(60, 60, 60, 11, 60, 60), HOW, 4)),
        "layer 1 kv head 1: 11 rows are outside [12, 150]",
    ),
    "more rows than positions": (
        lambda c: c.native.compress(Compression(rows(151, 60, 60, 60, 60, 60), HOW, 4)),
        "layer 0 kv head 0: 151 rows are outside [12, 150]",
    ),
    "too few heads": (
        lambda c: c.native.compress(Compression(rows(60, 60), HOW, 4)),
        "n_rows has 2 elements, the model has 6",
    ),
    "no window": (lambda c: c.native.keep([[1]] * N_HEADS, 0), "n_obs = 0 is outside [1, 149]"),
    "window of everything": (lambda c: c.native.keep([[1]] * N_HEADS, N_POS), "n_obs = 150 is outside [1, 149]"),
    "window that was not scored": (
        lambda c: c.native.compress(Compression(rows(), Scorer(n_obs=9), 4)),
        "n_obs = 9, but 8 tokens were scored",
    ),
    "even pooling of a head": (
        lambda c: c.native.compress(Compression(rows(), HOW, 4, 1, HeadScoring((1, 2) * 3, (0.5,) * 6, (0.5,) * 6, 1))),
        "pool_kernels = 2 is not an odd number",
    ),
    "even pooling of the vote": (
        lambda c: c.native.compress(Compression(rows(), HOW, 4, 1, HeadScoring((1,) * 6, (0.5,) * 6, (0.5,) * 6, 4))),
        "vote_kernel = 4 is not an odd number",
    ),
    "too few scores": (
        lambda c: c.native.compress(Compression(rows(), HOW, 4, 1, None, [np.zeros((6, N_PREFIX - 1))])),
        f"n_scores = {6 * (N_PREFIX - 1)}, expected 6 heads x {N_PREFIX} positions",
    ),
    "scores that are none": (
        lambda c: c.native.compress(Compression(rows(), HOW, 4, 1, None, [np.full((6, N_PREFIX), np.nan)])),
        "scores holds a value that is not finite",
    ),
    "share above 1": (
        lambda c: c.native.compress(Compression(rows(), HOW, 4, 1, HeadScoring((1,) * 6, (0.5,) * 6, (1.5,) * 6, 1))),
        "vote_shares holds a value outside 0 to 1",
    ),
    "position in the window": (
        lambda c: c.native.keep(with_head(2, [5, N_PREFIX]), N_OBS),
        "layer 1 kv head 0: position 142 is not above 5 and below 142",
    ),
    "position twice": (lambda c: c.native.keep(with_head(5, [7, 7]), N_OBS), "layer 1 kv head 3: position 7"),
    "negative position": (lambda c: c.native.keep(with_head(0, [-1]), N_OBS), "layer 0 kv head 0: position -1"),
    "too few lists": (lambda c: c.native.keep([[1]] * 5, N_OBS), "n_kept has 5 elements, the model has 6"),
    "more cells than positions": (lambda c: c.native.reserve(513), "513 cells are more than the context's 512"),
}


@pytest.mark.parametrize("what", INVALID)
def test_invalid_argument_names_value_and_limit(open_context: MakeContext, what: str) -> None:
    undisturbed, context = open_context(TINY), open_context(TINY)
    for each in (undisturbed, context):
        each.arm_and_decode(TOKENS[:N_POS], N_OBS)
    call, message = INVALID[what]
    before = context.native.stats()
    with pytest.raises(NativeError) as error:
        call(context)
    assert message in str(error.value)
    assert error.value.status == STATUS_INVALID_ARGUMENT
    assert "\n" not in str(error.value)
    assert context.native.stats() == before
    for each in (undisturbed, context):
        each.native.compress(Compression(rows(), HOW, 4))
    np.testing.assert_array_equal(go_on(context), go_on(undisturbed))


WRONG_STATE: dict[str, Callable[[Context], Any]] = {
    "observe again": lambda c: c.native.observe(8),
    "compress again": lambda c: c.native.compress(Compression(rows(), HOW, 4)),
    "keep again": lambda c: c.native.keep([[1]] * N_HEADS, 2),
    "read scores": lambda c: c.native.score_read(0, HOW),
}


@pytest.mark.parametrize("what", WRONG_STATE)
def test_a_compressed_cache_is_not_compressed_again(open_context: MakeContext, what: str) -> None:
    undisturbed, context = (compressed_context(open_context) for _ in range(2))
    before = context.native.stats()
    with pytest.raises(NativeError) as error:
        WRONG_STATE[what](context)
    assert error.value.status == STATUS_WRONG_STATE
    assert context.native.stats() == before
    np.testing.assert_array_equal(go_on(context), go_on(undisturbed))


# ways to evaluate the last tokens so that they are not, once each, the window that was to observe
UNSCORED: dict[str, Callable[[Context], Any]] = {
    "never armed": lambda c: c.decode(TOKENS[140:150]),
    "too few": lambda c: (c.native.observe(12), c.decode(TOKENS[140:150])),
    "too many at once": lambda c: (c.native.observe(6), c.decode(TOKENS[140:150])),
    "more came later": lambda c: (c.native.observe(6), c.decode(TOKENS[140:146]), c.decode(TOKENS[146:150])),
    "disarmed": lambda c: (c.native.observe(10), c.decode(TOKENS[140:150]), c.native.observe(0)),
    "half of it twice": lambda c: (
        c.native.observe(10),
        c.decode(TOKENS[140:145]),
        c.seq_rm(140),
        setattr(c.llama, "n_tokens", 140),
        c.decode(TOKENS[140:145]),
        c.decode(TOKENS[145:150]),
    ),
}


@pytest.mark.parametrize("what", UNSCORED)
def test_scores_of_another_window_are_not_used(open_context: MakeContext, what: str) -> None:
    undisturbed, context = open_context(TINY), open_context(TINY)
    for each in (undisturbed, context):
        each.decode(TOKENS[:140])
    undisturbed.decode(TOKENS[140:150])
    UNSCORED[what](context)
    for n_obs in (6, 10, 12):
        with pytest.raises(NativeError) as error:
            context.native.compress(Compression(rows(), Scorer(n_obs=n_obs), 4))
        assert error.value.status in (STATUS_WRONG_STATE, STATUS_INVALID_ARGUMENT)
    assert context.native.stats().n_pos_hot == 0
    if what != "half of it twice":  # that one cut the batch in two, which adds up in another order
        np.testing.assert_array_equal(go_on(context), go_on(undisturbed))


# ---- models and contexts ----

REASONS = {
    "bloom": "ALiBi",
    "deepseek2": "latent attention",
    "gemma3": "no layer of the model attends to all positions",
    "mamba": "recurrent",
}


@pytest.mark.parametrize("n_cells", [0, 64])
@pytest.mark.parametrize("arch", REFUSED)
def test_unsupported_model_is_refused_and_still_decodes(
    open_context: MakeContext, refused_path: Callable[[str], Path], arch: str, n_cells: int
) -> None:
    from pyheadkv.engine.native import Native

    path = refused_path(arch)
    stock, context = open_context(path, attach=False), open_context(path, attach=False, n_cells=n_cells)
    with pytest.raises(ModelError, match=REASONS[arch]):
        Native(context.llama)
    logits = context.decode(TOKENS[:300])
    np.testing.assert_array_equal(logits, stock.decode(TOKENS[:300]))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"flash_attn": False}, "flash attention is off"), ({"embedding": True, "n_batch": 2}, "2 sequences")],
    ids=str,
)
def test_unsupported_context_is_refused_and_still_decodes(
    open_context: MakeContext, options: dict[str, Any], reason: str
) -> None:
    from pyheadkv.engine.native import Native

    stock = open_context(TINY, **options, attach=False)
    context = open_context(TINY, **options, attach=False)
    with pytest.raises(ModelError, match=reason):
        Native(context.llama)
    np.testing.assert_array_equal(context.decode(TOKENS[:300]), stock.decode(TOKENS[:300]))
