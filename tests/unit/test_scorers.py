"""What each scorer wants to see of a prompt, and what it asks of the library."""

from __future__ import annotations

import pytest

from pyheadkv._abi import FOLDS, REDUCES, SCORES
from pyheadkv.scorers import SCORERS, Scorer

N_PROMPT, N_SINK = 1000, 4


@pytest.mark.parametrize("name", SCORERS)
def test_the_library_knows_what_it_is_asked(name: str) -> None:
    for fold in ("mean", "max"):
        scorer = Scorer(name, fold=fold)
        assert scorer.kind in SCORES
        assert scorer.native_fold in FOLDS
        assert scorer.gathers is None or scorer.gathers in REDUCES


@pytest.mark.parametrize(
    ("name", "n_last", "gathers"),
    [
        ("snapkv", 16, "max"),
        ("tova", 16, "max"),
        ("h2o", N_PROMPT, "max"),
        ("expected_attention", N_PROMPT - N_SINK, "moments"),
        ("streaming", 16, None),
        ("knorm", 16, None),
        ("keydiff", 16, None),
        ("kvzip", 16, None),
    ],
)
def test_observing_tokens(name: str, n_last: int, gathers: str | None) -> None:
    scorer = Scorer(name, n_obs=16, reduce="max")
    assert (scorer.n_last(N_PROMPT, N_SINK), scorer.gathers) == (n_last, gathers)


def test_only_tova_folds_the_layer() -> None:
    assert [name for name in SCORERS if Scorer(name).native_fold == "layer"] == ["tova"]
    assert Scorer(fold="max").native_fold == "max"


@pytest.mark.parametrize("name", SCORERS)
def test_says_where_it_comes_from(name: str) -> None:
    assert "https://arxiv.org/abs/" in SCORERS[name].about
    assert "Differs from the paper:" in SCORERS[name].about
