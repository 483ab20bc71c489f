"""Names and parameters of the native scorers; the maths is in native/headkv-score.

A scorer rates every position of every KV head by the attention that the last `n_obs` queries of the
prompt pay to it. With a profile, the heads that retrieve are treated in their own way: their scores
are pooled more widely, since what they find is copied as a whole, and they share what they found.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyheadkv.errors import PolicyError

SCORERS = {"snapkv": "mean attention of the observation window, folded over the group, then pooled"}
REDUCES = ("mean", "max")
POOLS = ("max", "avg")
FOLDS = ("mean", "max")
MAX_N_OBS = 512
MAX_POOL_KERNEL = 255


@dataclass(frozen=True)
class Scorer:
    """Parameters of a scorer. Paper: Li et al., SnapKV, https://arxiv.org/abs/2404.14469

    Parameters
    ----------
    name
        one of `SCORERS`
    n_obs
        observation window: the last queries of the prompt, which score and whose rows are kept
    pool_kernel
        odd positions pooled into each score, stride 1, same length; 1 is no pooling
    pool
        "max" or "avg"
    fold
        how the query heads of a KV head share their scores, before pooling: "mean" or "max"
    reduce
        how the queries of the window share their attention: "mean" or "max"
    retrieval_share
        so many of the KV heads, 0 to 1, are treated as retrieval heads: those with the highest
        retrieval scores of the profile
    retrieval_kernel
        positions pooled into the scores of a retrieval head
    vote
        0 to 1: how much of a retrieval head's scores is the vote of all heads, in which each has the
        weight of its retrieval score (native/headkv-vote.h)

    Raises
    ------
    PolicyError
        naming the value and the limit
    """

    name: str = "snapkv"
    n_obs: int = 16
    pool_kernel: int = 7
    pool: str = "max"
    fold: str = "mean"
    reduce: str = "mean"
    retrieval_share: float = 0.0
    retrieval_kernel: int = 17
    vote: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what the native side would refuse, before a prompt is read."""
        if self.name not in SCORERS:
            raise PolicyError(f"unknown scorer {self.name!r}, known are {', '.join(SCORERS)}")
        if not 1 <= self.n_obs <= MAX_N_OBS:
            raise PolicyError(f"n_obs is {self.n_obs}, expected 1 to {MAX_N_OBS}")
        for key, kernel in (("pool_kernel", self.pool_kernel), ("retrieval_kernel", self.retrieval_kernel)):
            if not 1 <= kernel <= MAX_POOL_KERNEL or kernel % 2 == 0:
                raise PolicyError(f"{key} is {kernel}, expected an odd number from 1 to {MAX_POOL_KERNEL}")
        for key, share in (("retrieval_share", self.retrieval_share), ("vote", self.vote)):
            if not 0 <= share <= 1:
                raise PolicyError(f"{key} is {share:g}, expected 0 to 1")
        words = (("pool", self.pool, POOLS), ("fold", self.fold, FOLDS), ("reduce", self.reduce, REDUCES))
        for key, word, known in words:
            if word not in known:
                raise PolicyError(f"{key} is {word!r}, expected {' or '.join(known)}")
