"""A cache that can be kept aside, put back, and compressed by any plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pyheadkv.cache.prefill import Prefill
from pyheadkv.cache.reconstruct import Reconstruction
from pyheadkv.cache.select import Floats, begin_observation, observed
from pyheadkv.engine.llama import tokens_of
from pyheadkv.policy.allocators import get_allocator
from pyheadkv.policy.plan import DraftPlan, Plan
from pyheadkv.policy.scorers import Scorer


@dataclass(frozen=True)
class Snapshot:
    """A whole cache, aside: the tokens that were read, and the rows as llama.cpp writes them, uint8.

    `scores` are of its positions, by scorer and sinks, where making them takes reading the prompt.
    """

    tokens: list[int]
    rows: npt.NDArray[np.uint8]
    scores: dict[tuple[Scorer, int], list[Floats]] = field(default_factory=dict)


class Engine(Prefill):
    """A `Prefill` whose cache can be kept aside and put back."""

    def read_only(self, tokens: Sequence[int]) -> None:
        """Have exactly these tokens in a whole cache."""
        self.forget()
        self.native.reserve(len(tokens))
        self.read(tokens)

    def snapshot(self) -> Snapshot:
        """A copy of the cache, which must be whole."""
        return Snapshot(tokens_of(self.llama), self.native.state_save())

    def restore(self, snapshot: Snapshot, n_tokens: int) -> None:
        """Have the first tokens of a copy in a whole cache; there are no logits until a token is read."""
        self.forget()
        self.native.reserve(len(snapshot.tokens))
        self.native.state_restore(snapshot.rows)
        self.llama.input_ids[: len(snapshot.tokens)] = snapshot.tokens
        self.llama.n_tokens = len(snapshot.tokens)
        self.cut(n_tokens)

    def compress(self, snapshot: Snapshot, draft: DraftPlan) -> None:
        """Put a copy back and compress it, as `pyheadkv.HeadKV` does with a prompt: after a lookahead, if any.

        Scores for which the prompt is read or repeated are made once for all budgets and allocators.
        """
        plan, scores = draft.expected, None
        scorer, n_last = plan.policy.scorer, plan.n_last
        must_observe = plan.policy.lookahead > 0 or get_allocator(plan.policy.allocator).needs_semantics
        if scorer.needs_reconstruction or (n_last > scorer.n_obs and not must_observe):
            scores, n_last = self._scores_of(snapshot, plan), scorer.n_obs
        n_before = len(snapshot.tokens) - n_last
        self.restore(snapshot, n_before)
        self.compress_prompt(snapshot.tokens[n_before:], draft, scores)

    def _scores_of(self, snapshot: Snapshot, plan: Plan) -> list[Floats]:
        """Scores of a copy's positions before the window, not pooled."""
        asked = plan.policy.scorer
        scorer = Scorer(asked.name, asked.n_obs, pool_kernel=1, fold=asked.fold, reduce=asked.reduce)
        key = (scorer, plan.policy.n_sink)
        if key not in snapshot.scores:
            snapshot.scores[key] = self._make_scores(snapshot, plan, scorer)
        return snapshot.scores[key]

    def _make_scores(self, snapshot: Snapshot, plan: Plan, scorer: Scorer) -> list[Floats]:
        n_before = len(snapshot.tokens) - plan.n_last
        self.restore(snapshot, n_before)
        if scorer.needs_reconstruction:
            return Reconstruction(self.llama, snapshot.tokens[:n_before]).scores(self.native, self.read, scorer)
        begin_observation(self.native, observed(plan))
        self.read(snapshot.tokens[n_before:])
        return [self.native.score_read(i, scorer) for i in range(len(plan.rows))]
