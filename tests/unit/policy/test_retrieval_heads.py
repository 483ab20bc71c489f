"""Who is taken for a retrieval head, and what follows from it."""

from __future__ import annotations

import pytest

from pyheadkv.errors import ProfileError
from pyheadkv.policy.retrieval_heads import HeadScoring, head_scoring, retrieval_scores
from pyheadkv.policy.scorers import Scorer
from pyheadkv.profile import Profile

SCORES = ((0.1, 0.4), (0.3, 0.2))
PROFILE = Profile(SCORES, "test")
SCORER = Scorer(pool_kernel=3, retrieval_share=0.5, retrieval_kernel=9, vote_share=0.25)


def test_highest_scores_retrieve() -> None:
    assert head_scoring(SCORER, PROFILE) == HeadScoring(
        pool_kernels=(3, 9, 9, 3), vote_weights=(0.1, 0.4, 0.3, 0.2), vote_shares=(0.0, 0.25, 0.25, 0.0), vote_kernel=9
    )


def test_ties_go_to_the_earlier_head_and_shares_are_rounded() -> None:
    equal = Profile(((0.25, 0.25), (0.25, 0.25)), "test")
    scoring = head_scoring(Scorer(pool_kernel=3, retrieval_share=0.4, retrieval_kernel=9), equal)
    assert scoring is not None and scoring.pool_kernels == (9, 9, 3, 3)


def test_all_heads_alike_need_no_roles() -> None:
    assert head_scoring(Scorer(vote_share=0.5), PROFILE) is None
    assert head_scoring(Scorer(), None) is None


def test_without_a_profile() -> None:
    with pytest.raises(ProfileError, match="retrieval_share needs a profile"):
        head_scoring(SCORER, None)


def test_scores_measured_on_questions_tell_best() -> None:
    copy, reasoning = ((1.0, 0.0), (0.0, 0.0)), ((0.0, 0.0), (0.0, 1.0))
    kinds = {"reconstruction": SCORES}
    assert retrieval_scores(Profile(SCORES, "", kinds=kinds)) == SCORES
    assert retrieval_scores(Profile(SCORES, "", kinds=kinds | {"retrieval": copy})) == copy
    both = kinds | {"retrieval": copy, "retrieval-reasoning": reasoning}
    assert retrieval_scores(Profile(SCORES, "", kinds=both)) == reasoning
