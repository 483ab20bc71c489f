"""Decode speed of the stock cache and of ours, in turns in one process, on the same prompt."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyheadkv.bench.setup import Setup, finish, no_memory
from pyheadkv.cache.prefill import Prefill
from pyheadkv.cache.select import begin_observation, observed
from pyheadkv.cache.stats import TurnTimer
from pyheadkv.policy.plan import DraftPlan, Plan
from pyheadkv.policy.trial import Trial

if TYPE_CHECKING:
    import llama_cpp


@dataclass(frozen=True)
class Spread:
    """Median of some values, and their quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; the quartiles of one are that one."""
        low, median, high = statistics.quantiles(
            [*values, *values[:1]] if len(values) == 1 else values, method="inclusive"
        )
        return cls(median, low, high)


@dataclass(frozen=True)
class Speed:
    """Cost of decoding, and of what comes before it.

    Parameters
    ----------
    ms_stock, ms_ours
        milliseconds a token
    ratio
        stock / ours, of each round
    ms_scoring
        what scoring adds to reading the tokens that observe
    ms_select
        a reconstruction pass if the policy has one, reading scores, choosing, gathering, freeing the full cache
    bytes_measured
        of our K and V buffers while decoding
    """

    ms_stock: Spread
    ms_ours: Spread
    ratio: Spread
    ms_scoring: float
    ms_select: float
    bytes_measured: int


class Race:
    """Stock and ours on one prompt.

    Parameters
    ----------
    stock, ours
        as `Setup.open_stock` and `Setup.open_ours` make them

    Attributes
    ----------
    ms_prefill
        that stock took to read the prompt
    """

    def __init__(self, setup: Setup, stock: llama_cpp.Llama, ours: llama_cpp.Llama, n_prompt: int) -> None:
        self.setup = setup
        self.stock, self.ours = stock, ours
        self.prompt = setup.prompt(stock, n_prompt)
        self.prefill = Prefill(ours)
        start = time.perf_counter()
        stock.eval(self.prompt)
        finish(stock)
        self.ms_prefill = (time.perf_counter() - start) * 1000
        self._state = stock.save_state()  # so that ours need not read it again for every trial

    def run(self, trial: Trial, draft: DraftPlan) -> Speed:
        """Compress the prompt by a trial, then decode in turns; the first turns only warm up.

        Raises
        ------
        BenchError
            the prompt was not compressed: there was no memory
        """
        self._put_back()
        ms_scoring = self._scoring_ms(draft.expected)
        self._put_back()
        n_last = draft.expected.n_last
        self.prefill.cut(len(self.prompt) - n_last)
        self.prefill.turn = TurnTimer()
        with no_memory(trial):
            self.prefill.compress_prompt(self.prompt[-n_last:], draft)
        n_past = self._go_on(trial, draft.expected.policy.lookahead)
        rounds = [
            [self._decode_ms(llama, n_past) for llama in (self.stock, self.ours)]
            for _ in range(self.setup.n_rounds + 1)
        ][1:]
        turn, stats = self.prefill.turn, self.prefill.native.stats()
        stock, ours = zip(*rounds, strict=True)
        return Speed(
            Spread.of(stock),
            Spread.of(ours),
            Spread.of([a / b for a, b in rounds]),
            ms_scoring,
            turn.ms_reconstruction + turn.ms_select,
            stats.bytes_hot + stats.bytes_tail,
        )

    def _put_back(self) -> None:
        """Have the whole prompt in our cache, which is whole."""
        self.prefill.forget()
        self.prefill.native.reserve(len(self.prompt))
        input_ids = self.ours.input_ids
        self.ours.load_state(self._state)
        self.ours.input_ids = input_ids  # ours has room for more tokens than stock, whose place came with the state
        input_ids[: len(self.prompt)] = self.prompt

    def _go_on(self, trial: Trial, n_ahead: int) -> int:
        """Have both sides decode tokens before it counts; returns the positions that are there then."""
        n_prompt = len(self.prompt)
        self.stock.n_tokens = n_prompt
        for token in self.prompt[:n_ahead]:
            self.stock.eval([token])
            with no_memory(trial):
                self.prefill.read([token])
        return n_prompt + n_ahead

    def _decode_ms(self, llama: llama_cpp.Llama, n_past: int) -> float:
        """Milliseconds a token, decoded one by one after n_past positions; the tokens are taken back."""
        tokens = self.prompt[: self.setup.n_tokens]
        start = time.perf_counter()
        for token in tokens:
            llama.eval([token])
            finish(llama)
        ms = (time.perf_counter() - start) * 1000 / len(tokens)
        llama.n_tokens = n_past
        return ms

    def _scoring_ms(self, plan: Plan) -> float:
        """Median, over the rounds, of what scoring adds to reading the last tokens."""
        if plan.policy.scorer.gathers is None:
            return 0.0
        last = self.prompt[-plan.n_last :]
        # where the whole prompt observes, once has to do
        n_rounds = self.setup.n_rounds if len(last) < len(self.prompt) // 2 else 1
        added = []
        for _ in range(n_rounds):
            plain, scored = (self._last_ms(last, plan if is_observed else None) for is_observed in (False, True))
            added.append(scored - plain)
        return max(0.0, statistics.median(added))

    def _last_ms(self, last: list[int], plan: Plan | None) -> float:
        """Milliseconds to read the last tokens again, scored as the plan wants it, if any."""
        self.prefill.go_back(len(last))
        if plan:
            begin_observation(self.prefill.native, observed(plan))
        start = time.perf_counter()
        self.prefill.read(last)
        finish(self.ours)
        ms = (time.perf_counter() - start) * 1000
        self.prefill.native.observe(0)
        return ms
