"""Which KV heads retrieve, and how their positions are rated.

A few heads find the passage that is about to be copied (retrieval heads: Wu et al.,
https://arxiv.org/abs/2404.15574; DuoAttention, https://arxiv.org/abs/2410.10819). What they find is needed as a whole,
so their scores are pooled over many positions; the other heads attend to single positions, and pooling only costs
them rows. At the end of a question only some retrieval heads look at the answer already, so they share what they
found: a share of each one's scores is the vote of all heads, weighted by measured retrieval scores. On the demo model
this is the difference between 57 % and 96 % of needles at 1.5 % of the rows (23 cases).
"""

from __future__ import annotations

from dataclasses import dataclass

from pyheadkv.errors import ProfileError
from pyheadkv.policy.scorers import Scorer
from pyheadkv.profile import Profile, Scores

# the kind of scores that tells who retrieves, best first
_RETRIEVAL_KINDS = ("retrieval-reasoning", "retrieval")


@dataclass(frozen=True)
class HeadScoring:
    """How each KV head's positions are rated, all of them layer after layer.

    Parameters
    ----------
    pool_kernels
        positions pooled into each score, odd
    vote_weights
        weight of each head in the vote, >= 0
    vote_shares
        share of the vote in each head's scores, 0 to 1
    vote_kernel
        pooling of the vote, odd
    """

    pool_kernels: tuple[int, ...]
    vote_weights: tuple[float, ...]
    vote_shares: tuple[float, ...]
    vote_kernel: int


def head_scoring(scorer: Scorer, profile: Profile | None) -> HeadScoring | None:
    """Tell the retrieval heads from the others; None when the scorer makes no difference between heads.

    Raises
    ------
    ProfileError
        the scorer asks for retrieval heads, and there is no profile
    """
    if scorer.retrieval_share == 0:
        return None
    if profile is None:
        raise ProfileError("retrieval_share needs a profile with measured head scores")
    vote_weights = [score for layer in retrieval_scores(profile) for score in layer]
    n_retrieval = round(scorer.retrieval_share * len(vote_weights))
    by_score = sorted(range(len(vote_weights)), key=lambda h: (-vote_weights[h], h))
    retrieving = set(by_score[:n_retrieval])
    return HeadScoring(
        pool_kernels=tuple(
            scorer.retrieval_kernel if h in retrieving else scorer.pool_kernel for h in range(len(vote_weights))
        ),
        vote_weights=tuple(vote_weights),
        vote_shares=tuple(scorer.vote_share if h in retrieving else 0.0 for h in range(len(vote_weights))),
        vote_kernel=scorer.retrieval_kernel,
    )


def retrieval_scores(profile: Profile) -> Scores:
    """The profile's scores that tell retrieval heads: a kind measured on questions, else the scores in use."""
    kind = next((kind for kind in _RETRIEVAL_KINDS if kind in profile.kinds), None)
    return profile.kinds[kind] if kind else profile.scores
