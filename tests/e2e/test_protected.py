"""Protected spans and recent rows: kept by every KV head, natively and through a session; presets that rely on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.native import Compression
from pyheadkv.errors import NativeError
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import make_tokens
from tests.e2e.test_scorers import N_POS, N_SINK, SHAPES
from tests.reference.select import select_positions

SCORER = Scorer(n_obs=16, pool_kernel=3)
SPANS = ((4, 6), (50, 60), (190, 194))
ROWS = [36, 50, 40, 60, 100, 210, 77]  # 4 sinks, 16 in spans, 16 observed: the first head chooses nothing


@pytest.mark.parametrize("n_threads", [1, 3])
def test_every_head_keeps_the_spans_and_chooses_the_rest(open_context: MakeContext, n_threads: int) -> None:
    context = open_context(SHAPES["unequal"])
    context.arm_and_decode(make_tokens(N_POS, 64), SCORER.n_obs)
    scores = [head for i in range(3) for head in context.native.score_read(i, SCORER)]
    context.native.compress(Compression(np.array(ROWS), SCORER, N_SINK, n_threads, spans=SPANS))
    always = [*range(N_SINK), *(p for span in SPANS for p in range(*span))]
    for kept, score, rows in zip((head for layer in context.kept() for head in layer), scores, ROWS, strict=True):
        lifted = score.astype(np.float64)
        lifted[always] = np.inf
        np.testing.assert_array_equal(kept, select_positions(lifted, 0, rows - SCORER.n_obs))
    assert np.isfinite(context.decode([3, 4, 5])).all()


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (((10, 10),), "span 0, positions 10 to 10, is empty"),
        (((2, 10),), r"span 0, positions 2 to 10, is empty or not inside \[4, 194\]"),
        (((10, 20), (15, 30)), r"span 1, positions 15 to 30, is empty or not inside \[20, 194\]"),
        (((180, 195),), r"positions 180 to 195, is empty or not inside \[4, 194\]"),
        (((10, 60),), r"layer 0 kv head 0: 36 rows are outside \[70, 210\]"),
    ],
)
def test_wrong_spans_are_refused(open_context: MakeContext, spans: tuple[tuple[int, int], ...], message: str) -> None:
    context = open_context(SHAPES["unequal"])
    context.arm_and_decode(make_tokens(N_POS, 64), SCORER.n_obs)
    with pytest.raises(NativeError, match=message):
        context.native.compress(Compression(np.array(ROWS), SCORER, N_SINK, spans=spans))
    assert context.native.stats().n_pos_hot == 0
    context.native.compress(Compression(np.array(ROWS), SCORER, N_SINK, spans=SPANS))


@pytest.mark.parametrize("policy", ["task-kv", "task-kv:beta=0.6", "task-kv:lookahead=4"])
@pytest.mark.parametrize("budget", ["60%", "20%"])
def test_task_kv(open_context: MakeContext, policy: str, budget: str) -> None:
    tokens = make_tokens(700, 64)
    llama = open_context(SHAPES["unequal"], attach=False, n_ctx=1024).llama
    with HeadKV(llama, policy=policy, budget=budget) as headkv:
        llama.eval(tokens)
        for token in tokens[:4]:
            llama.eval([token])
        plan = headkv.plan
        assert plan is not None and sum(map(sum, plan.rows)) == plan.rows_kept
        n_recent = min(256 - 32, (plan.rows_kept // 7 - 48) // 2)
        assert plan.protected == ((700 - 32 - n_recent, 668),)
        for i, layer in enumerate(plan.rows):
            floor = 48 + n_recent
            if budget == "60%":  # the farthest head of each layer keeps all, or what the others' floors leave
                assert max(layer) == min(700, sum(layer) - (len(layer) - 1) * floor)
            for ih in range(len(layer)):
                kept = headkv.native.positions(i, ih)
                assert set(range(16)) <= set(kept) and set(range(668 - n_recent, 668)) <= set(kept)
                assert len(kept) + 32 == layer[ih]
        assert np.isfinite(llama.scores[703]).all()


def test_task_kv_gives_the_same_rows_for_every_ubatch(open_context: MakeContext) -> None:
    rows = []
    for n_ubatch in (512, 32):
        llama = open_context(SHAPES["unequal"], attach=False, n_ctx=1024, n_ubatch=n_ubatch).llama
        with HeadKV(llama, policy="task-kv", budget="50%") as headkv:
            llama.eval(make_tokens(700, 64))
            rows.append(headkv.plan.rows)
    assert rows[0] == rows[1]


def test_duo_on_the_demo_model(open_context: MakeContext, demo_path: Path) -> None:
    """Retrieval heads keep all, the others 16 sinks and the last rows, a quarter of what is dealt with the window."""
    llama = open_context(demo_path, attach=False, n_ctx=1024, logits_all=False).llama
    tokens = llama.tokenize(b"All good things come to an end, said the miller, and went on. " * 60)[:800]
    with HeadKV(llama, policy="duo", budget="50%") as headkv:
        llama.eval(tokens)
        plan = headkv.plan
        rows = sorted(n for layer in plan.rows for n in layer)
        assert sum(rows) == plan.rows_kept
        n_full = sum(n == 800 for n in rows)
        n_recent = (400 - 16 - 1) // 4 + 1
        assert n_full > 5 and rows[: 90 - n_full - 1] == [16 + n_recent] * (90 - n_full - 1)
        i, ih = next((i, ih) for i, layer in enumerate(plan.rows) for ih, n in enumerate(layer) if n == 16 + n_recent)
        np.testing.assert_array_equal(headkv.native.positions(i, ih), [*range(16), *range(800 - n_recent, 799)])


def test_marked_text_is_kept_whole(open_context: MakeContext, demo_path: Path) -> None:
    marked = "The password of the harbour master is 7 4 1 9."
    filler = "All good things come to an end, said the miller, and went on. "
    notices: list[str] = []
    llama = open_context(demo_path, attach=False, n_ctx=1024, logits_all=False).llama
    tokens = llama.tokenize((filler * 20 + marked + " " + filler * 20).encode())
    texts = [marked, "nowhere to be found", filler * 15]
    with HeadKV(llama, policy="snapkv", budget="20%", protect=texts, on_notice=notices.append) as headkv:
        llama.eval(tokens)
        (span,) = headkv.plan.protected
        assert llama.detokenize(tokens[slice(*span)]).decode().strip().startswith(marked)
        for i, layer in enumerate(headkv.plan.rows):
            for ih in range(len(layer)):
                assert set(range(*span)) <= set(headkv.native.positions(i, ih))
        stats = headkv.stats().native
        assert stats.n_rows_hot + stats.n_rows_tail == headkv.plan.rows_kept
    assert len(notices) == 2
    assert notices[0] == "nothing to protect: 'nowhere to be found' is not in the prompt"
    assert notices[1].endswith("are not protected: the budget has no room")
