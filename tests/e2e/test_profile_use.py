"""Which profile a session and the command line use, and that policies which look at the prompt work on real scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyheadkv.chat.session import HeadKV, load
from pyheadkv.engine.native import Native
from pyheadkv.errors import ProfileError
from pyheadkv.export import export_model
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.fingerprint import fingerprint
from pyheadkv.model.shape import shape_from_metadata
from pyheadkv.policy.plan import make_plan
from pyheadkv.profile import BudgetChoice, Profile, write_profile
from pyheadkv.profile.find import find_profile
from tests.reference.select import select_positions
from tests.tiny import Tiny, write_tiny

TINY = Tiny(n_vocab=256)
N_PROMPT = 600


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", TINY)


def profile_of(path: Path, first: float = 0.7, **more: Any) -> Profile:
    n_heads = sum(TINY.n_head_kv)
    flat = [first, *[(1 - first) / (n_heads - 1)] * (n_heads - 1)]
    rest = iter(flat)
    scores = tuple(tuple(next(rest) for _ in range(n)) for n in TINY.n_head_kv)
    return Profile(scores, "test", fingerprint=fingerprint(path), **more)


@pytest.fixture
def opened() -> Iterator[Any]:
    llamas: list[Any] = []

    def open_model(path: Path) -> Any:
        llamas.append(load(path, n_threads=1, n_ctx=1024))
        return llamas[-1]

    yield open_model
    for llama in llamas:
        llama.close()


def read_prompt(llama: Any) -> None:
    llama.eval(np.random.default_rng(3).integers(0, TINY.n_vocab, N_PROMPT).tolist())


def test_profile_in_the_model_is_used_by_itself(tiny: Path, tmp_path: Path, opened: Any) -> None:
    out = tmp_path / "with.gguf"
    settings = (BudgetChoice(1.0, "headkv:beta=1.5,n_obs=8"),)
    export_model(tiny, out, profile_of(tiny, settings=settings), keep_ratio=0.2)
    notices: list[str] = []
    llama = opened(out)
    with HeadKV(llama, on_notice=notices.append) as headkv:
        read_prompt(llama)
        assert headkv.plan is not None
        assert (headkv.plan.policy.name, headkv.plan.policy.n_obs, headkv.budget.request) == ("headkv", 8, "20%")
        assert headkv.plan.rows[0][0] == max(n for layer in headkv.plan.rows for n in layer)
        assert notices == []
        stats = headkv.stats().native
        assert stats.n_rows_hot + stats.n_rows_tail == headkv.plan.rows_kept


def test_named_file_comes_before_the_models_own(tiny: Path, tmp_path: Path, opened: Any) -> None:
    out, file = tmp_path / "with.gguf", tmp_path / "other.headkv.json"
    export_model(tiny, out, profile_of(tiny, first=0.7))
    write_profile(file, profile_of(tiny, first=0.1))
    with HeadKV(opened(out), profile=file) as headkv:
        assert headkv.profile is not None and headkv.profile.scores[0][0] == pytest.approx(0.1)


def test_without_a_profile_there_is_a_notice(tiny: Path, opened: Any) -> None:
    notices: list[str] = []
    llama = opened(tiny)
    with HeadKV(llama, budget="20%", on_notice=notices.append) as headkv:
        read_prompt(llama)
        assert headkv.plan is not None and headkv.plan.policy.name == "snapkv"
    assert len(notices) == 1 and "no head scores are known" in notices[0]


def test_profile_of_another_model_is_refused_by_key(tiny: Path, tmp_path: Path, opened: Any) -> None:
    other = write_tiny(tmp_path / "other.gguf", Tiny(n_vocab=256, seed=9))
    file = tmp_path / "other.headkv.json"
    write_profile(file, profile_of(other))
    with pytest.raises(ProfileError, match=r"headkv\.fingerprint is .* measured on another model"):
        HeadKV(opened(tiny), profile=file)


def test_profile_without_fingerprint_is_taken_with_a_notice(tiny: Path, opened: Any) -> None:
    notices: list[str] = []
    whole = profile_of(tiny)
    HeadKV(opened(tiny), profile=Profile(whole.scores, "test", source="mine"), on_notice=notices.append).close()
    assert notices == ["profile mine does not say which model it was measured on"]


def test_demo_model_is_headkv_at_once(demo_path: Path) -> None:
    metadata = read_gguf_metadata(demo_path)
    profile = find_profile(demo_path, metadata, shape_from_metadata(metadata))
    assert profile is not None
    assert {"retrieval", "retrieval-reasoning", "reconstruction"} <= set(profile.kinds)
    heads = [(score, il, ih) for il, layer in enumerate(profile.scores) for ih, score in enumerate(layer)]
    assert {(il, ih) for _, il, ih in sorted(heads)[-2:]} == {
        (18, 2),
        (17, 1),
    }  # as with other questions


@pytest.mark.parametrize("policy", ["ada-snapkv", "dynamic-kv", "global"])
def test_rows_by_the_scores_of_the_prompt(tiny: Path, opened: Any, policy: str) -> None:
    llama = opened(tiny)
    with HeadKV(llama, policy=policy, budget="20%") as headkv:
        read_prompt(llama)
        plan = headkv.plan
        assert plan is not None
        equal = make_plan(headkv.shape, plan.policy, plan.budget, N_PROMPT)
        assert equal is not None and plan.rows != equal.rows and plan.rows_kept == equal.rows_kept
        for i, layer in enumerate(plan.rows):
            for ih, n in enumerate(layer):
                assert headkv.native.positions(i, ih).size == n - plan.policy.n_obs
        assert json.loads(json.dumps(headkv.report()))["kv"]["rows_per_head"] == [list(layer) for layer in plan.rows]


@pytest.mark.parametrize("policy", ["snapkv", "ada-snapkv"])
def test_lookahead_observes_the_answer(tiny: Path, opened: Any, policy: str) -> None:
    tokens = np.random.default_rng(3).integers(0, TINY.n_vocab, N_PROMPT).tolist()
    ahead, by_hand = opened(tiny), opened(tiny)
    with HeadKV(ahead, policy=f"{policy}:lookahead=6", budget="20%") as headkv:
        stream = ahead.generate(tokens, temp=0.0)
        said = [next(stream) for _ in range(7)]
        stream.close()
        plan = headkv.plan
        assert plan is not None and plan.n_prompt == N_PROMPT
        stats = headkv.stats().native
        assert (stats.n_pos_hot, stats.n_pos) == (N_PROMPT - 16, N_PROMPT + 6)
        assert stats.n_rows_hot + 16 * headkv.shape.n_kv_heads == plan.rows_kept
        kept = [headkv.native.positions(i, ih) for i, n in enumerate(TINY.n_head_kv) for ih in range(n)]

    native = Native(by_hand)
    by_hand.eval(tokens[:-16])
    native.observe(22)
    by_hand.eval(tokens[-16:])
    for token in said[:6]:
        by_hand.eval([token])
    scorer = replace(plan.policy.scorer, n_obs=22)
    scores = [native.score_read(i, scorer) for i in range(len(TINY.n_head_kv))]
    rows = [n - 16 for layer in plan.rows for n in layer]
    chosen = [select_positions(head, 4, n) for head, n in zip(np.concatenate(scores), rows, strict=True)]
    for ours, theirs in zip(kept, chosen, strict=True):
        np.testing.assert_array_equal(ours, theirs)
