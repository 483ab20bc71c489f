"""HeadKV on real contexts of a tiny random model: rows, bytes, reuse, failures, and answers beside stock llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.capsule.reader import read_contents
from pyheadkv.chat.session import HeadKV, load
from pyheadkv.engine.abi import STATUS_NO_MEMORY
from pyheadkv.engine.llama import cut
from pyheadkv.engine.native import Compression, debug_alloc_fail
from pyheadkv.errors import ModelError, NativeError, UsageError
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.shape import shape_from_metadata
from pyheadkv.policy.scorers import Scorer
from pyheadkv.profile import Profile, write_profile
from tests.tiny import Tiny, write_tiny

TINY = Tiny(n_vocab=256)
N_PROMPT = 700
# bytes that allocators add to a buffer: alignment of each of its tensors
ALIGNMENT = 1024


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", TINY)


@pytest.fixture
def llama(tiny: Path) -> Iterator[Any]:
    llama = load(tiny, n_threads=1)
    yield llama
    llama.close()


def prompt_of(n: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, TINY.n_vocab, n).tolist()


def answer(llama: Any, prompt: list[int], n: int = 12) -> list[int]:
    stream = llama.generate(prompt, temp=0.0)
    tokens = [next(stream) for _ in range(n)]
    stream.close()
    return tokens


def logits(llama: Any) -> np.ndarray:
    return np.ctypeslib.as_array(llama._ctx.get_logits(), shape=(TINY.n_vocab,)).copy()


def test_shape_from_keys_is_the_librarys(tiny: Path, llama: Any) -> None:
    headkv = HeadKV(llama)
    assert shape_from_metadata(read_gguf_metadata(tiny)) == headkv.shape
    assert tuple(headkv.shape.row_bytes(i) for i in range(headkv.shape.n_layer)) == headkv.native.row_bytes()


@pytest.mark.parametrize("type_k", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"])
def test_every_cache_type(tiny: Path, type_k: str) -> None:
    llama = load(tiny, n_threads=1, type_k=type_k, type_v=type_k)
    headkv = HeadKV(llama, budget="25%")
    assert headkv.type_k == type_k
    assert headkv.shape.row_bytes(0, type_k, type_k) == headkv.native.row_bytes()[0]
    answer(llama, prompt_of(N_PROMPT), 2)
    assert headkv.is_compressed
    llama.close()


def test_the_plan_is_what_is_kept_and_measured(llama: Any) -> None:
    headkv = HeadKV(llama, budget="25%")
    answer(llama, prompt_of(N_PROMPT))
    plan, stats = headkv.plan, headkv.native.stats()
    assert plan is not None and plan.rows_kept == N_PROMPT
    n_obs = plan.policy.n_obs
    for i, layer in enumerate(plan.rows):
        for ih, n in enumerate(layer):
            kept = headkv.native.positions(i, ih)
            assert len(kept) == n - n_obs
            assert (np.diff(kept) > 0).all()
            assert kept[:4].tolist() == [0, 1, 2, 3] and kept[-1] < N_PROMPT - n_obs
    expected = stats.n_rows_hot * 256
    assert stats.n_rows_hot == plan.rows_kept - 4 * n_obs
    assert expected <= stats.bytes_hot <= expected + ALIGNMENT
    assert stats.bytes_observed == 0
    assert headkv.stats().bytes_measured < plan.bytes_full / 2


def test_all_rows_answer_like_stock(tiny: Path, llama: Any) -> None:
    expected = answer(llama, prompt_of(N_PROMPT))
    whole = logits(llama)
    other = load(tiny, n_threads=1)
    with HeadKV(other, budget="100%") as headkv:
        assert answer(other, prompt_of(N_PROMPT)) == expected
        assert headkv.is_compressed
    np.testing.assert_allclose(logits(other), whole, atol=2e-2 * np.abs(whole).max())  # f16 sums in another order
    other.close()


def test_few_rows_answer_differently(llama: Any) -> None:
    """Otherwise the test above would prove nothing."""
    answer(llama, prompt_of(N_PROMPT))
    whole = logits(llama)
    llama.reset()
    HeadKV(llama, budget="4%")
    answer(llama, prompt_of(N_PROMPT))
    assert np.abs(logits(llama) - whole).max() > 2e-2 * np.abs(whole).max()


def test_second_turn_equals_reading_new_tokens_alone(tiny: Path, llama: Any) -> None:
    headkv = HeadKV(llama, archive="none")
    prompt = prompt_of(N_PROMPT)
    prompt += answer(llama, prompt)
    turn = prompt_of(40, seed=2)
    second = answer(llama, prompt + turn)
    assert headkv.stats().n_read == 41
    other = load(tiny, n_threads=1)
    HeadKV(other, archive="none")
    answer(other, prompt[:N_PROMPT])
    for token in [prompt[-1], *turn[:-1]]:
        other.eval([token])
    other.eval(turn[-1:])
    assert int(logits(other).argmax()) == second[0]
    other.close()


def test_changed_conversation_answers_as_if_new(tiny: Path, llama: Any) -> None:
    notices: list[str] = []
    headkv = HeadKV(llama, archive="none", on_notice=notices.append)
    answer(llama, prompt_of(N_PROMPT))
    changed = prompt_of(N_PROMPT)
    changed[100] = (changed[100] + 1) % TINY.n_vocab
    again = answer(llama, changed)
    assert len(notices) == 2 and headkv.stats().n_read == N_PROMPT
    other = load(tiny, n_threads=1)
    HeadKV(other, archive="none")
    assert answer(other, changed) == again
    np.testing.assert_array_equal(logits(other), logits(llama))
    other.close()


def test_cut_in_the_tail_and_clear(llama: Any) -> None:
    headkv = HeadKV(llama, archive="none")
    first = answer(llama, prompt_of(N_PROMPT), 40)
    assert answer(llama, prompt_of(N_PROMPT) + first[:10], 5) == first[10:15]
    assert headkv.is_compressed
    headkv.clear()
    stats = headkv.native.stats()
    assert (stats.n_pos, stats.bytes_hot) == (0, 0)
    assert answer(llama, prompt_of(N_PROMPT), 40) == first


@pytest.mark.parametrize("n_left", [N_PROMPT, N_PROMPT - 1, 100])
def test_a_prompt_that_is_there_already_is_answered_by_its_own_logits(llama: Any, n_left: int) -> None:
    """A cut leaves no logits, whatever llama-cpp-python has computed last."""
    with HeadKV(llama, budget="full"):
        first = answer(llama, prompt_of(N_PROMPT), 12)
        cut(llama, n_left)
        assert answer(llama, prompt_of(N_PROMPT), 12) == first


def test_long_document_after_a_short_start(llama: Any) -> None:
    headkv = HeadKV(llama)
    start = prompt_of(300)
    start += answer(llama, start)
    answer(llama, start + prompt_of(900, seed=3))
    assert headkv.plan is not None and headkv.plan.n_prompt == 300 + 12 + 900


@pytest.mark.parametrize("sweep", [False, True])
def test_each_allocation_may_fail_and_the_chat_goes_on(tiny: Path, sweep: bool) -> None:
    """Refuse the 1st, 2nd, ... allocation of a turn until none is left to refuse.

    What cannot be read layer by layer for want of memory is read as ever.
    """
    expected = None
    n_refused = 0
    for n in range(12, -1, -1):  # 12 is beyond the last one, 0 refuses none
        llama = load(tiny, n_threads=1)
        headkv = HeadKV(llama, sweep=sweep)
        debug_alloc_fail(n)
        try:
            answer(llama, prompt_of(N_PROMPT))
        except NativeError as error:
            assert error.status == STATUS_NO_MEMORY
        finally:
            debug_alloc_fail(0)
        n_refused += not headkv.is_compressed
        assert len(answer(llama, [*prompt_of(N_PROMPT), 7])) == 12  # whatever happened, the chat goes on
        headkv.clear()
        tokens = answer(llama, prompt_of(N_PROMPT))
        expected = expected or tokens
        assert tokens == expected and headkv.is_compressed
        llama.close()
    assert n_refused == 0 if sweep else 1 < n_refused < 12


@pytest.mark.parametrize("stop_at", [512, N_PROMPT - 16, N_PROMPT])
def test_interrupt_while_reading(llama: Any, stop_at: int) -> None:
    with HeadKV(llama) as headkv:
        expected = answer(llama, prompt_of(N_PROMPT))
        headkv.clear()
    headkv = HeadKV(llama)

    def interrupt(done: int, total: int) -> None:
        if done >= stop_at:
            headkv.on_progress = None
            raise KeyboardInterrupt

    headkv.on_progress = interrupt
    with pytest.raises(KeyboardInterrupt):
        answer(llama, prompt_of(N_PROMPT))
    assert not headkv.is_compressed and headkv.native.stats().bytes_observed == 0
    if stop_at < N_PROMPT:
        assert answer(llama, prompt_of(N_PROMPT)) == expected
        assert headkv.is_compressed


@pytest.mark.parametrize("policy", ["h2o", "expected-attention"])
def test_all_of_a_half_read_prompt_observes(tiny: Path, policy: str) -> None:
    """What was read before the interrupt is taken back: the context has no room for it twice."""
    llama = load(tiny, n_ctx=512, n_batch=128, n_threads=1)
    headkv = HeadKV(llama, policy=policy, budget="25%")
    llama.eval(prompt_of(400)[:200])  # too short to be compressed
    assert not headkv.is_compressed and llama.n_tokens == 200
    tokens = answer(llama, prompt_of(400))
    assert headkv.is_compressed and headkv.stats().native.bytes_observed == 0
    headkv.clear()
    assert answer(llama, prompt_of(400)) == tokens


def test_uneven_heads_by_a_profile(tiny: Path, tmp_path: Path) -> None:
    llama = load(tiny, n_threads=1)
    write_profile(tmp_path / "heads.json", Profile(((0.7, 0.1), (0.2, 0.0)), "test"))
    headkv = HeadKV(llama, policy="headkv", profile=tmp_path / "heads.json", budget="20%")
    answer(llama, prompt_of(N_PROMPT))
    assert headkv.plan is not None
    kept = [[len(headkv.native.positions(i, ih)) + headkv.policy.n_obs for ih in range(2)] for i in range(2)]
    assert tuple(map(tuple, kept)) == headkv.plan.rows
    assert kept[0][0] > kept[1][0] > kept[0][1] > kept[1][1]
    assert sum(map(sum, kept)) == N_PROMPT * 4 // 5
    llama.close()


def test_states(llama: Any) -> None:
    headkv = HeadKV(llama)
    short = prompt_of(200)
    first = answer(llama, short)
    state = llama.save_state()
    answer(llama, prompt_of(N_PROMPT, seed=5))
    with pytest.raises(UsageError):
        llama.save_state()
    llama.load_state(state)
    assert not headkv.is_compressed
    assert answer(llama, short) == first


def test_explicit_rows(llama: Any) -> None:
    headkv = HeadKV(llama, budget="full")
    llama.eval(prompt_of(N_PROMPT))
    rows = [np.arange(0, N_PROMPT - 10, step) for step in (1, 2, 50, 600)]
    headkv.native.keep(rows, n_obs=10)
    for k, expected in enumerate(rows):
        np.testing.assert_array_equal(headkv.native.positions(k // 2, k % 2), expected)
    llama.eval([5])
    with pytest.raises(NativeError):
        headkv.native.keep(rows, n_obs=10)


def test_scores_are_read_as_selected(llama: Any) -> None:
    headkv = HeadKV(llama, budget="full")
    native, scorer = headkv.native, Scorer()
    llama.eval(prompt_of(N_PROMPT - scorer.n_obs))
    native.observe(scorer.n_obs)
    llama.eval(prompt_of(N_PROMPT)[-scorer.n_obs :])
    scores = [native.score_read(i, scorer) for i in range(2)]
    assert all(layer.shape == (2, N_PROMPT - scorer.n_obs) for layer in scores)
    native.compress(Compression(np.full(4, 50, dtype=np.uint32), scorer, n_sink=4))
    for k in range(4):
        head = scores[k // 2][k % 2]
        best = np.argsort(-head[4:], kind="stable")[: 50 - scorer.n_obs - 4] + 4
        assert native.positions(k // 2, k % 2).tolist() == sorted([0, 1, 2, 3, *best.tolist()])


def test_unfit_contexts_are_refused(tiny: Path) -> None:
    import llama_cpp

    plain = llama_cpp.Llama(str(tiny), n_ctx=512, verbose=False, flash_attn=False)
    with pytest.raises(ModelError, match="flash"):
        HeadKV(plain)
    plain.close()


CALLS: dict[str, Callable[[Any], object]] = {
    "eval": lambda llama: llama.eval([1, 2]),
    "generate": lambda llama: next(llama.generate([1, 2])),
    "create_completion": lambda llama: llama.create_completion("hello"),
    "create_chat_completion": lambda llama: llama.create_chat_completion([{"role": "user", "content": "hello"}]),
    "tokenize": lambda llama: llama.tokenize(b"hello"),
    "detokenize": lambda llama: llama.detokenize([1, 2]),
    "n_ctx": lambda llama: llama.n_ctx(),
    "save_state": lambda llama: llama.save_state(),
}


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_closed_llama_is_an_error_and_no_crash(llama: Any, is_compressed: bool, tmp_path: Path) -> None:
    headkv = HeadKV(llama, policy="snapkv", budget="10%")
    assert repr(headkv) == "<HeadKV policy=snapkv, budget=10%, 0 of 0 rows kept>"
    llama.eval(prompt_of(N_PROMPT if is_compressed else 9))
    assert headkv.is_compressed == is_compressed
    stats = headkv.native.stats()
    kept = stats.n_rows_hot + stats.n_rows_tail
    assert f"budget=10%, {kept} of {4 * llama.n_tokens} rows kept>" in repr(headkv)
    headkv.save(tmp_path / "saved.hkv")
    arguments: dict[str, list[Any]] = {
        "read_whole": [[1, 2]],
        "save": [tmp_path / "new.hkv"],
        "load": [tmp_path / "saved.hkv"],
        "check_capsule": [read_contents(tmp_path / "saved.hkv")],
    }
    llama.close()
    for name, call in CALLS.items():
        with pytest.raises(UsageError, match="this Llama is closed"):
            print(name, call(llama))
    # a plan needs the shape alone
    for name in (name for name in dir(HeadKV) if not name.startswith("_") and name not in ("close", "plan_for")):
        with pytest.raises(UsageError, match="this Llama is closed"):
            found = getattr(headkv, name)
            print(name, found(*arguments.get(name, [])))
    assert not (tmp_path / "new.hkv").exists()
    assert repr(headkv) == "<HeadKV policy=snapkv, budget=10%, its Llama is closed>"
    headkv.close()
    llama.close()
    with pytest.raises(UsageError, match="this Llama is closed"):
        HeadKV(llama)
    with pytest.raises(UsageError, match="this Llama is closed"):
        llama.eval([1, 2])


def test_a_llama_that_was_closed_before_is_refused(llama: Any) -> None:
    llama.close()
    with pytest.raises(UsageError, match="this Llama is closed"):
        HeadKV(llama)


def test_a_llama_for_embeddings_is_refused_with_a_way_on(tiny: Path) -> None:
    for n_batch in (1, 64):
        llama = load(tiny, n_ctx=512, n_batch=n_batch, embedding=True)
        with pytest.raises(UsageError, match="load the model a second time for embeddings"):
            HeadKV(llama)
        llama.close()


@pytest.mark.parametrize(
    ("n_bytes", "readers"), [(200, (read_gguf_metadata, load)), (2000, (load,)), (100_000, (load,))]
)
def test_truncated_file(tiny: Path, tmp_path: Path, n_bytes: int, readers: tuple[Callable[[Path], Any], ...]) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes(tiny.read_bytes()[:n_bytes])
    for read in readers:
        with pytest.raises(ModelError, match=r"short\.gguf") as caught:
            read(short)
        assert "\n" not in str(caught.value)
