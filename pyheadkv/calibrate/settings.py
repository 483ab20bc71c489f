"""How a model is calibrated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyheadkv.errors import CalibrationError
from pyheadkv.profile import KINDS
from pyheadkv.profile.profile import check_mix

FOLDS = ("sum", "max")
MIN_LENGTH = 384  # the needles of a page and a question need more than half of it


@dataclass(frozen=True)
class CalibrationSettings:
    """Measurements of a calibration, and what is made of them.

    Parameters
    ----------
    n_examples
        questions; whole pages of them are asked, so it may be a few more
    lengths
        of the prompts, in tokens; those above the context are left out
    seed
        of everything that is drawn
    n_excerpts
        for reconstruction, at least 2
    excerpt_tokens
        length of each, at most
    fold
        how retrieval scores of query heads become those of KV heads: "sum" or "max" over each group
    mix
        kind of scores -> weight, for the scores in use
    """

    n_examples: int = 72
    lengths: tuple[int, ...] = (512, 1024, 2048)
    seed: int = 0
    n_excerpts: int = 2
    excerpt_tokens: int = 1000
    fold: str = "sum"
    mix: Mapping[str, float] = field(
        default_factory=lambda: {"retrieval-reasoning": 1.0, "reconstruction": 1.0}, hash=False
    )

    def __post_init__(self) -> None:
        if self.n_examples < 1:
            raise CalibrationError(f"{self.n_examples} examples are too few, at least 1 is needed")
        if not self.lengths or min(self.lengths) < MIN_LENGTH:
            shortest = min(self.lengths, default=0)
            raise CalibrationError(f"a length of {shortest} tokens is too short, at least {MIN_LENGTH} are needed")
        if self.n_excerpts < 2:
            raise CalibrationError(f"{self.n_excerpts} excerpts are too few, at least 2 are needed")
        if self.fold not in FOLDS:
            raise CalibrationError(f"unknown fold {self.fold!r}, known are {', '.join(FOLDS)}")
        check_mix(self.mix, dict.fromkeys(KINDS, ()), "the mix")

    def within(self, n_ctx: int) -> tuple[int, ...]:
        """The lengths that a context has room for.

        Raises
        ------
        CalibrationError
            there are none
        """
        lengths = tuple(length for length in self.lengths if length <= n_ctx)
        if not lengths:
            raise CalibrationError(
                f"no length fits into a context of {n_ctx} tokens: the shortest is {min(self.lengths)}"
            )
        return lengths

    def n_ctx(self, n_ctx_train: int) -> int:
        """The context that is needed, at most the model's own."""
        return min(n_ctx_train, max(*self.lengths, 2 * self.excerpt_tokens + EXCERPT_ROOM))


EXCERPT_ROOM = 128  # tokens of chat template and request around an excerpt and its repetition
