"""A model whose cache can be kept aside, put back, and compressed by any plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyheadkv.cache.reconstruct import Repetition
from pyheadkv.cache.select import Floats, arm, compress
from pyheadkv.engine.llama import Reader, cut_back
from pyheadkv.policy.allocators import get_allocator
from pyheadkv.policy.plan import DraftPlan, Plan
from pyheadkv.policy.scorers import Scorer

if TYPE_CHECKING:
    import llama_cpp


@dataclass(frozen=True)
class Kept:
    """A whole cache, aside: the tokens that were read, and the rows as llama.cpp writes them, uint8.

    `scores` are of its positions, by scorer and sinks, where making them takes reading the prompt.
    """

    tokens: list[int]
    rows: npt.NDArray[np.uint8]
    scores: dict[tuple[Scorer, int], list[Floats]] = field(default_factory=dict)


class Engine(Reader):
    """A `Reader` whose cache can be kept aside, put back, and compressed."""

    def __init__(self, llama: llama_cpp.Llama) -> None:
        super().__init__(llama)
        self._waiting: tuple[DraftPlan, list[Floats] | None] | None = None  # until its lookahead is read

    def forget(self) -> None:
        """Empty the cache and give its memory back."""
        self._waiting = None
        super().forget()

    def read(self, tokens: Sequence[int]) -> None:
        """Have exactly these tokens in a whole cache."""
        self.forget()
        self.native.reserve(len(tokens))
        self.go_on(tokens)

    def go_on(self, tokens: Sequence[int]) -> None:
        """Read tokens after those that are there; one by one while a policy looks ahead."""
        super().go_on(tokens)
        if self._waiting is None:
            return
        draft, scores = self._waiting
        if self.llama.n_tokens >= draft.expected.n_prompt + draft.expected.policy.lookahead:
            self._waiting = None
            self._carry_out(draft, scores)

    def keep_aside(self) -> Kept:
        """A copy of the cache, which must be whole."""
        tokens: list[int] = self.llama.input_ids[: self.llama.n_tokens].tolist()
        return Kept(tokens, self.native.state_save())

    def put_back(self, kept: Kept, n_tokens: int) -> None:
        """Have the first tokens of a copy in a whole cache; there are no logits until a token is read."""
        self.forget()
        self.native.reserve(len(kept.tokens))
        self.native.state_restore(kept.rows)
        self.llama.input_ids[:n_tokens] = kept.tokens[:n_tokens]
        cut_back(self.llama, n_tokens)

    def compress(self, kept: Kept, draft: DraftPlan) -> None:
        """Put a copy back and compress it, as `pyheadkv.HeadKV` does with a prompt: after a lookahead, if any.

        Scores for which the prompt is read or repeated are made once for all budgets and allocators.
        """
        plan, scores = draft.expected, None
        scorer, n_ahead = plan.policy.scorer, plan.policy.lookahead
        n_last = plan.n_last
        must_observe = n_ahead > 0 or get_allocator(plan.policy.allocator).needs_semantics
        if scorer.needs_second_pass or (n_last > scorer.n_obs and not must_observe):
            scores = self._scores(kept, plan)
            n_last = scorer.n_obs
        n_before = len(kept.tokens) - n_last
        self.put_back(kept, n_before)
        if scores is None:
            arm(self.native, plan)
        self.go_on(kept.tokens[n_before:])
        if n_ahead:
            self._waiting = draft, scores
        else:
            self._carry_out(draft, scores)

    def _scores(self, kept: Kept, plan: Plan) -> list[Floats]:
        """Scores of a copy's positions before the window, not pooled."""
        asked = plan.policy.scorer
        scorer = Scorer(asked.name, asked.n_obs, pool_kernel=1, fold=asked.fold, reduce=asked.reduce)
        key = (scorer, plan.policy.n_sink)
        if key not in kept.scores:
            kept.scores[key] = self._make_scores(kept, plan, scorer)
        return kept.scores[key]

    def _make_scores(self, kept: Kept, plan: Plan, scorer: Scorer) -> list[Floats]:
        n_before = len(kept.tokens) - plan.n_last
        self.put_back(kept, n_before)
        if scorer.needs_second_pass:
            return Repetition(self.llama, kept.tokens[:n_before]).scores(self.native, self.go_on, scorer)
        arm(self.native, plan)
        self.go_on(kept.tokens[n_before:])
        return [self.native.score_read(i, scorer) for i in range(len(plan.rows))]

    def _carry_out(self, draft: DraftPlan, scores: list[Floats] | None) -> None:
        compress(self.native, draft, int(self.llama.n_threads_batch), scores)

    def compress_to(self, kept: Kept, positions: Sequence[npt.ArrayLike], n_obs: int) -> None:
        """Put a copy back and keep the given positions of each KV head, as `Native.keep` takes them."""
        self.put_back(kept, len(kept.tokens) - 1)
        self.go_on(kept.tokens[-1:])
        self.native.keep(positions, n_obs)
