"""What each scorer wants to see of a prompt, and what it asks of the library."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyheadkv.engine.abi import FOLDS, REDUCES, SCORES
from pyheadkv.policy.scorers import SCORERS, Scorer

N_PROMPT, N_SINK = 1000, 4


@pytest.mark.parametrize("name", SCORERS)
def test_the_library_knows_what_it_is_asked(name: str) -> None:
    for fold in ("mean", "max"):
        scorer = Scorer(name, fold=fold)
        assert scorer.kind in SCORES
        assert scorer.native_fold in FOLDS
        assert scorer.gathers is None or scorer.gathers in REDUCES


# last tokens of the prompt that are read by themselves, and what is gathered from them
OBSERVED = {
    "snapkv": (16, "max"),
    "h2o": (N_PROMPT, "max"),
    "tova": (16, "max"),
    "criticalkv": (16, "max"),
    "layer_defensive": (16, "queries"),
    "streaming": (16, None),
    "knorm": (16, None),
    "keydiff": (16, None),
    "expected_attention": (N_PROMPT - N_SINK, "moments"),
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
