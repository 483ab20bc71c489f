"""Names and parameters of the native scorers; the maths is in native/headkv-score.

A scorer rates every position of every KV head by the attention that the last `n_obs` queries of the
prompt pay to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyheadkv.errors import PolicyError

SCORERS = {"snapkv": "mean attention of the observation window, folded over the group, then pooled"}
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

    def __post_init__(self) -> None:
        """Refuse what the native side would refuse, before a prompt is read."""
        if self.name not in SCORERS:
            raise PolicyError(f"unknown scorer {self.name!r}, known are {', '.join(SCORERS)}")
        if not 1 <= self.n_obs <= MAX_N_OBS:
            raise PolicyError(f"n_obs is {self.n_obs}, expected 1 to {MAX_N_OBS}")
        if not 1 <= self.pool_kernel <= MAX_POOL_KERNEL or self.pool_kernel % 2 == 0:
            limits = f"an odd number from 1 to {MAX_POOL_KERNEL}"
            raise PolicyError(f"pool_kernel is {self.pool_kernel}, expected {limits}")
        if self.pool not in POOLS:
            raise PolicyError(f"pool is {self.pool!r}, expected {' or '.join(POOLS)}")
        if self.fold not in FOLDS:
            raise PolicyError(f"fold is {self.fold!r}, expected {' or '.join(FOLDS)}")
