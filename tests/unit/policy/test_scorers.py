"""What each scorer wants to see of a prompt, and what it asks of the library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyheadkv.engine.abi import FOLDS, OBSERVES, SCORES
from pyheadkv.errors import PolicyError
from pyheadkv.model.shape import LayerShape, ModelShape
from pyheadkv.policy import allocators, policy, scorers
from pyheadkv.policy.allocators import Allocator, AllocRequest, Param, register_allocator
from pyheadkv.policy.plan import draft_plan
from pyheadkv.policy.scorers import SCORERS, Scorer, ScorerKind, register_scorer
from pyheadkv.policy.text import parse_policy

N_PROMPT, N_SINK = 1000, 4


@pytest.mark.parametrize("name", SCORERS)
def test_the_library_knows_what_it_is_asked(name: str) -> None:
    for fold in ("mean", "max"):
        scorer = Scorer(name, fold=fold)
        assert scorer.kind in SCORES
        assert scorer.native_fold in FOLDS
        assert scorer.gathers is None or scorer.gathers in OBSERVES


# last tokens of the prompt that are read by themselves, and what is gathered from them
OBSERVED = {
    "snapkv": (16, "attn_max"),
    "h2o": (N_PROMPT, "attn_max"),
    "tova": (16, "attn_max"),
    "criticalkv": (16, "attn_max"),
    "layer_defensive": (16, "queries"),
    "streaming": (16, None),
    "knorm": (16, None),
    "keydiff": (16, None),
    "expected_attention": (N_PROMPT - N_SINK, "query_stats"),
    "kvzip": (16, None),
}


@pytest.mark.parametrize("name", SCORERS)
def test_observing_tokens(name: str) -> None:
    scorer = Scorer(name, n_obs=16, reduce="max")
    assert (scorer.n_last(N_PROMPT, N_SINK), scorer.gathers) == OBSERVED[name]


def test_only_tova_folds_the_layer() -> None:
    assert [name for name in SCORERS if Scorer(name).native_fold == "layer"] == ["tova"]
    assert Scorer(fold="max").native_fold == "max"


# the papers, as tests/reference/ names them beside their formulas
PAPERS = {
    "snapkv": "2404.14469",
    "h2o": "2306.14048",
    "tova": "2401.06104",
    "criticalkv": "2502.03805",
    "layer_defensive": "2510.13334",
    "streaming": "2309.17453",
    "knorm": "2406.11430",
    "keydiff": "2504.15364",
    "expected_attention": "2510.00636",
    "kvzip": "2505.23416",
}


@pytest.mark.parametrize("name", SCORERS)
def test_comes_from_the_paper_of_its_reference(name: str, root: Path) -> None:
    assert SCORERS[name].source == PAPERS[name]
    references = [path.read_text(encoding="utf-8") for path in (root / "tests" / "reference").glob("*.py")]
    assert any(f"https://arxiv.org/abs/{PAPERS[name]}" in reference for reference in references)


# ---- one of one's own


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered is forgotten after the test."""
    known = dict(SCORERS)
    for module in (scorers, policy):
        monkeypatch.setattr(module, "SCORERS", known)
    monkeypatch.setattr(allocators, "_ALLOCATORS", dict(allocators._ALLOCATORS))


def by_sums(request: AllocRequest) -> list[list[int]]:
    """Layers by the sums of their scores."""
    assert request.token_scores is not None
    sums = [max(1, round(float(scores.sum()))) for scores in request.token_scores]
    return request.deal([total for total, n in zip(sums, request.n_head_kv, strict=True) for _ in range(n)])


SUMMING = Allocator(
    "sums",
    "more for layers with larger sums",
    by_sums,
    needs_token_scores=True,
    ranks="layer",
    params={"sharp": Param(default=1, at_least=0, at_most=1, needs_sums=True)},
)


@pytest.mark.usefixtures("registries")
def test_one_of_each_from_outside_makes_a_plan() -> None:
    """What they declare is all that the package needs to know."""
    register_scorer("all-queries", ScorerKind("all queries", "made up", observers="prompt", fold="layer"))
    register_scorer("odd", ScorerKind("no sums", "made up", native="knorm", observers="none", no_sums="are odd"))
    register_allocator(SUMMING)
    shape = ModelShape("llama", "", 4096, layers=(LayerShape(0, 4, 2, 64, 64),) * 2)
    draft = draft_plan(shape, parse_policy("sums+all-queries:n_obs=8,fold=max"), "25%", 400)
    assert draft is not None and draft.expected.n_last == 400
    scorer = draft.expected.policy.scorer
    assert (scorer.kind, scorer.native_fold, scorer.gathers) == ("attention", "layer", "attn_mean")
    low, high = (np.full((2, 392), value, dtype=np.float32) for value in (0.01, 0.03))
    rows = draft.finish([low, high]).rows
    assert sum(map(sum, rows)) == 400 and rows[1][0] > rows[0][0]
    assert parse_policy("sums+odd").params == {"sharp": 0}
    with pytest.raises(PolicyError, match=r"^sharp is 1, expected 0: odd scores are odd$"):
        parse_policy("sums+odd:sharp=1")
    with pytest.raises(PolicyError, match="heads cannot vote by odd"):
        Scorer("odd", retrieval_share=0.5)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tova", {}, "scorer 'tova' exists already"),
        ("mine", {"native": "magic"}, "scorer mine: native is 'magic', expected one of 'attention', 'critical'"),
        ("mine", {"observers": "all"}, "scorer mine: observers is 'all', expected one of 'window', 'prompt'"),
        ("mine", {"compares": "heads"}, "scorer mine: compares is 'heads', expected one of 'model', 'layer'"),
    ],
)
def test_a_scorer_that_nobody_can_make(name: str, settings: dict[str, str], message: str) -> None:
    with pytest.raises(PolicyError, match=f"^{message}"):
        register_scorer(name, ScorerKind("mine", "made up", **settings))
    assert "mine" not in scorers.SCORERS
