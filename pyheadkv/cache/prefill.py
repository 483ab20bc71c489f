"""Reading tokens onto the cache of a Llama, and compressing it by a plan: the only code that reads prompts.

    WHOLE --> OBSERVING (the last tokens of a prompt) -----------------------------------------> COMPRESSED
                        \\--> LOOKING_AHEAD (the first tokens of the answer, on the whole cache) --/

A prompt is read, of which the last tokens of its plan observe, as its scorer wants it; then the cache is compressed, or
after the first tokens of the answer where the policy looks ahead. Where the scorer has the prompt repeated, that comes
before the last tokens. Whatever fails on the way leaves a whole cache that holds the tokens up to ``llama.n_tokens``,
in which nothing observes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from enum import Enum, auto
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyheadkv.cache.reconstruct import Reconstruction
from pyheadkv.cache.select import Floats, begin_observation, compress, early_compression, observed
from pyheadkv.cache.stats import TurnTimer
from pyheadkv.cache.sweep import Sweep
from pyheadkv.engine.abi import STATUS_COMPUTE
from pyheadkv.engine.checkpoints import Checkpoints
from pyheadkv.engine.interrupt import interruptible
from pyheadkv.engine.llama import empty, logits, tokens_of
from pyheadkv.engine.native import Compression, Native, Observe
from pyheadkv.errors import NativeError, UsageError
from pyheadkv.policy.plan import DraftPlan, Plan

if TYPE_CHECKING:
    import llama_cpp

_DECODE_FAILURES = {
    1: "no cell is free for the new tokens",
    2: "the computation was aborted",
    -1: "the batch is invalid",
    -2: "memory for the computation could not be allocated",
    -3: "the computation failed",
}


class Stage(Enum):
    """How far a prompt is."""

    WHOLE = auto()
    OBSERVING = auto()
    LOOKING_AHEAD = auto()
    COMPRESSED = auto()


class Prefill:
    """A cache that tokens are read onto, whole at first.

    Parameters
    ----------
    llama
        with flash attention, best made by `pyheadkv.load`; its conversation is lost, unless this is the HeadKV's own
    native, evaluate
        of a HeadKV: the Llama's native side and its own eval
    on_progress
        called with (tokens read, tokens to read) while a prompt is read
    sweep
        reads prompts layer by layer, where that can be done; by default they are read batch by batch

    Attributes
    ----------
    turn
        counts tokens that are read, and their time
    checkpoints
        where the model has memory that cannot be cut

    Raises
    ------
    ModelError
        the model's cache cannot be compressed
    UsageError
        a HeadKV is on this Llama
    """

    def __init__(
        self,
        llama: llama_cpp.Llama,
        native: Native | None = None,
        evaluate: Callable[[list[int]], None] | None = None,
        on_progress: Callable[[int, int], None] = lambda n_done, n_total: None,
        sweep: Sweep | None = None,
    ) -> None:
        if evaluate is None and "eval" in vars(llama):
            raise UsageError("this Llama has a HeadKV: close that one before measuring")
        self.llama = llama
        self.native = native or Native(llama)
        self.turn = TurnTimer()
        self.checkpoints = Checkpoints(llama, are_needed=self.native.stats().bytes_beside > 0)
        self._evaluate = evaluate
        self._on_progress = on_progress
        self._sweep = sweep
        self._stage = Stage.WHOLE
        self._draft: DraftPlan | None = None  # for which is observed
        self._scores: list[Floats] | None = None  # of the prompt, that the library does not make
        self._plan: Plan | None = None
        self._n_done = self._n_total = 0

    @property
    def stage(self) -> Stage:
        """How far the cache is; upstream may have dropped the hot rows."""
        return Stage.COMPRESSED if self.native.stats().n_pos_hot > 0 else self._stage

    @property
    def plan(self) -> Plan | None:
        """The plan that a compressed cache follows; None while it is whole."""
        return self._plan if self.stage is Stage.COMPRESSED else None

    # ---- tokens ----

    def read(self, tokens: Sequence[int]) -> None:
        """Read tokens after those that are there, in batches.

        Raises
        ------
        NativeError
            they cannot be computed, or there is no memory to compress where a policy looked ahead at them
        KeyboardInterrupt
            Ctrl-C, soon after it
        """
        if not (self._sweep and self._sweep.is_open and self._read_by_layers(tokens)):
            for start in range(0, len(tokens), self.llama.n_batch):
                self._read_batch(list(tokens[start : start + self.llama.n_batch]))
        self.compress_if_due()

    def _read_batch(self, batch: list[int]) -> None:
        try:
            with interruptible(self.native) if len(batch) > 1 else nullcontext():
                self._eval(batch)
        except BaseException:
            self.checkpoints.cut(self.llama.n_tokens)  # some ubatches of the batch may be in the cache
            raise
        self._count(len(batch))

    def _read_by_layers(
        self,
        tokens: Sequence[int],
        observe: Observe | None = None,
        compression: Compression | None = None,
    ) -> bool:
        """Read tokens layer by layer; false: there is no room for their file, and nothing was read."""
        if self._sweep is None or not tokens:
            return False
        n_before = self._n_done

        def on_progress(n_done: int, n_all: int) -> None:  # a layer of all tokens is a share of the reading
            self._on_progress(n_before + n_done * len(tokens) // n_all, self._n_total)

        with interruptible(self.native):
            is_read = self._sweep.read(tokens, on_progress, observe, compression)
        if is_read:
            self._count(len(tokens))
        return is_read

    def _count(self, n_tokens: int) -> None:
        self.turn.n_read += n_tokens
        self._n_done += n_tokens
        self._on_progress(self._n_done, self._n_total)

    def decode(self, tokens: list[int]) -> None:
        """Read tokens that were generated; `compress_if_due` is to be called after them."""
        with self.turn.decode(len(tokens)):
            if not (self._sweep and self._sweep.is_open and self._sweep.read(tokens)):
                self._eval(tokens)

    def go_back(self, n_tokens: int) -> None:
        """Forget the last tokens, none of which has hot rows; there are no logits until one is read."""
        self.cut(self.llama.n_tokens - n_tokens)

    def cut(self, n_tokens: int) -> None:
        """Keep the first tokens, at least those that have hot rows; some may have to be read again for that."""
        tokens = tokens_of(self.llama)[:n_tokens]
        n_left = self.checkpoints.cut(n_tokens)
        if n_left < n_tokens:
            self._eval(tokens[n_left:])

    def forget(self) -> None:
        """Empty the cache and give its memory back; observe nothing any more."""
        self._forget_draft()
        self.checkpoints.forget()
        if self._sweep:
            self._sweep.forget()
        empty(self.llama)
        self.native.observe(0)

    def logits(self) -> npt.NDArray[np.float32]:
        """Of the token after the last one, f32 [n_vocab]; good until the next token is read."""
        return logits(self.llama)

    # ---- prompts ----

    def start_progress(self, n_total: int) -> None:
        """Count the tokens that are read from here on, of so many."""
        self._n_done, self._n_total = 0, n_total

    def read_whole(self, tokens: Sequence[int]) -> None:
        """Read tokens onto a whole cache, layer by layer where that can be done, and leave it whole.

        Raises
        ------
        NativeError
            a computation failed
        KeyboardInterrupt
            Ctrl-C, soon after it
        """
        self.start_progress(len(tokens))
        if not (self._sweep and self._sweep.suits(len(tokens)) and self._read_by_layers(tokens)):
            self._read_by_batches(list(tokens), len(tokens))

    def compress_prompt(self, tokens: Sequence[int], draft: DraftPlan, scores: list[Floats] | None = None) -> None:
        """Read the rest of a prompt, and compress all of it.

        Parameters
        ----------
        tokens
            those that are not in the cache, which is whole; among them all that observe
        draft
            of the whole prompt
        scores
            of its positions, where they are made already: for each layer f32 [n_head_kv, n_prompt - n_obs], not pooled.
            Nothing observes then

        Raises
        ------
        UsageError
            the prompt is to be repeated and has no room beside it; nothing is read then
        NativeError
            a computation failed, or there is no memory
        """
        plan = draft.expected
        reconstruction = None
        if plan.policy.scorer.needs_reconstruction and scores is None:
            n_last = plan.n_last
            head, last = list(tokens[: len(tokens) - n_last]), list(tokens[len(tokens) - n_last :])
            reconstruction = Reconstruction(self.llama, [*tokens_of(self.llama), *head], cut=self.cut)
        self.start_progress(len(tokens) + (reconstruction.n_tokens if reconstruction else 0))
        by_layers = self._sweep is not None and self._sweep.suits(len(tokens))
        try:
            if reconstruction:
                if not (by_layers and self._read_by_layers(head)):
                    self._read_by_batches(head, len(tokens))
                self.checkpoints.keep()
                scores = self._reconstruct(reconstruction, plan)
            self._stage, self._draft, self._scores = Stage.OBSERVING, draft, scores
            if reconstruction:
                self.read(last)
            else:
                self._read_observing(list(tokens), draft, by_layers)
            if self._draft:
                self._stage = Stage.LOOKING_AHEAD
                self.compress_if_due()
        except BaseException:
            self.stop_observing()
            raise

    def _read_observing(self, tokens: list[int], draft: DraftPlan, by_layers: bool) -> None:
        """Read tokens of which the last ones observe, if any does; layer by layer they may be compressed at once."""
        observe, compression = None, None
        if self._scores is None:
            observe = observed(draft.expected)
            compression = early_compression(draft, int(self.llama.n_threads_batch))
        if by_layers and self._read_by_layers(tokens, observe, compression):
            if compression:
                self.turn.ms_select += self.native.stats().ms_select
                self._plan = draft.expected
                self._forget_draft()
            return
        n_observing = observe.n_tokens - observe.n_ahead if observe else 0
        begin_observation(self.native, observe, len(tokens) - n_observing)
        if self.checkpoints.are_needed:
            n_hot = len(tokens) - draft.expected.policy.n_obs
            self._read_by_batches(tokens[:n_hot], len(tokens))
            self.checkpoints.keep()  # the hot rows will end here
            tokens = tokens[n_hot:]
        self._read_by_batches(tokens, len(tokens))

    def _read_by_batches(self, tokens: list[int], n_cells: int) -> None:
        """Read tokens, with room for as many as n_cells made at once."""
        self.native.reserve(self.llama.n_tokens + n_cells)
        self.read(tokens)

    def compress_if_due(self) -> None:
        """Compress when the last token that observes is in the cache."""
        draft = self._draft
        if self._stage is not Stage.LOOKING_AHEAD or draft is None:
            return
        if self.llama.n_tokens < draft.expected.n_prompt + draft.expected.policy.lookahead:
            return
        try:
            with self.turn.select():
                self._plan = compress(self.native, draft, int(self.llama.n_threads_batch), self._scores)
            self._forget_draft()
        except BaseException:
            self.stop_observing()
            raise

    def stop_observing(self) -> None:
        """Forget a prompt that was to be compressed: the cache stays whole."""
        if self._stage is not Stage.WHOLE:
            self._forget_draft()
            with suppress(NativeError):
                self.native.observe(0)

    def _forget_draft(self) -> None:
        """Scores are many numbers. The cache is whole, again once the hot rows are gone."""
        self._stage, self._draft, self._scores = Stage.WHOLE, None, None

    def _reconstruct(self, reconstruction: Reconstruction, plan: Plan) -> list[Floats]:
        n_read = self.turn.n_read
        with self.turn.reconstruction():
            scores = reconstruction.scores(self.native, self.read, plan.policy.scorer)
        self.turn.n_read = n_read  # a reconstruction is not counted
        return scores

    def _eval(self, tokens: list[int]) -> None:
        try:
            (self._evaluate or self.llama.eval)(tokens)
            self.native.synchronize()
        except RuntimeError as error:
            raise _decode_error(error, self.llama.n_tokens) from error


def _decode_error(error: RuntimeError, n_tokens: int) -> Exception:
    words = str(error).split()
    if words[:2] != ["llama_decode", "returned"]:
        return error
    reason = _DECODE_FAILURES.get(int(words[2]), "unknown failure")
    return NativeError(
        f"llama_decode failed after position {n_tokens}: {reason} (status {words[2]})",
        STATUS_COMPUTE,
    )
