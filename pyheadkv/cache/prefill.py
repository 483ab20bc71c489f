"""Reading tokens: what of a prompt is new, what has to be read again, and when the cache is compressed.

A prompt is read up to the last `n_last` tokens of its plan, those that its scorer observes; then scoring is armed, they
are read, and the cache is compressed, or after the first tokens of the answer where the policy looks ahead. A scorer
with a second pass has the model repeat the prompt before the last tokens are read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pyheadkv.cache.reconstruct import Repetition
from pyheadkv.cache.select import Floats, arm, compress
from pyheadkv.cache.stats import TurnTimer
from pyheadkv.engine.abi import STATUS_COMPUTE, STATUS_NO_MEMORY
from pyheadkv.engine.interrupt import interruptible
from pyheadkv.engine.llama import context_length, cut_back
from pyheadkv.engine.native import Native
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


class PromptReader:
    """Reads prompts and answers onto the cache of a Llama, and compresses it after a long prompt.

    Parameters
    ----------
    llama, native
        the model and its native side
    evaluate
        the Llama's own eval
    make_plan
        for a prompt; None leaves the cache whole
    min_prompt
        prompts of fewer tokens are left whole
    on_notice
        called with one line
    on_progress
        called with (tokens read, tokens to read)
    """

    def __init__(
        self,
        llama: llama_cpp.Llama,
        native: Native,
        evaluate: Callable[[list[int]], None],
        make_plan: Callable[[list[int]], DraftPlan | None],
        *,
        min_prompt: int,
        on_notice: Callable[[str], None],
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.turn = TurnTimer()
        self._llama = llama
        self._native = native
        self._evaluate = evaluate
        self._make_plan = make_plan
        self._min_prompt = min_prompt
        self._notify = on_notice
        self._on_progress = on_progress
        self._plan: Plan | None = None
        self._waiting: DraftPlan | None = None  # until its lookahead is generated
        self._scores: list[Floats] | None = None  # of a second pass
        self._n_done = self._n_total = 0

    @property
    def is_compressed(self) -> bool:
        """Whether a compressed prefix exists now."""
        return self._native.stats().n_pos_prefix > 0

    @property
    def plan(self) -> Plan | None:
        """The plan that the cache follows now; None while it is whole."""
        return self._plan if self.is_compressed else None

    def starts_in_prefix(self) -> bool:
        """Whether the next token would overwrite a position that is compressed: generate() was refused a cut there."""
        return self._llama.n_tokens < self._native.stats().n_pos_prefix

    def clear(self) -> None:
        """Empty the cache and give its memory back."""
        self.stop_looking_ahead()
        self._llama.reset()  # type: ignore[no-untyped-call]
        self._llama._ctx.kv_cache_seq_rm(-1, 0, -1)

    def stop_looking_ahead(self) -> None:
        """Forget a prompt that was to be compressed after the first tokens of its answer."""
        self._scores = None
        if self._waiting:
            self._waiting = None
            self._native.score_arm(0)

    def read_answer(self, tokens: list[int]) -> None:
        """Read tokens that were generated."""
        with self.turn.decode(len(tokens)):
            self._eval(tokens)
        if self._waiting:
            self._look_ahead(self._waiting)

    def read_prompt(self, tokens: list[int]) -> None:
        """Read the rest of a prompt, whose beginning is in the cache.

        Raises
        ------
        UsageError
            the prompt is longer than the context, or its second pass has no room there; nothing is read then
        NativeError
            a computation failed; the cache is whole then, up to ``llama.n_tokens``
        KeyboardInterrupt
            Ctrl-C, soon after it; the cache as after an error
        """
        n_prompt, n_ctx = self._llama.n_tokens + len(tokens), context_length(self._llama)
        if n_prompt > n_ctx:
            raise UsageError(f"prompt of {n_prompt} tokens is longer than the context of {n_ctx}")
        if self.turn.is_used:  # a caller's own loop of eval and sample, without generate
            self.turn = TurnTimer()
        self.turn.n_prompt = n_prompt
        self.stop_looking_ahead()
        with self.turn.prefill():
            if not self.is_compressed:
                self._read_whole(tokens)
            elif self._must_read_again(tokens):
                tokens = self._llama.input_ids[: self._llama.n_tokens].tolist() + tokens
                self.clear()
                self._read_whole(tokens)
            else:
                self._start_progress(len(tokens))
                self._read(tokens)

    def _read_whole(self, tokens: list[int]) -> None:
        """Read a prompt onto a cache that is not compressed, and compress it if there is something to gain."""
        prompt = [*self._llama.input_ids[: self._llama.n_tokens].tolist(), *tokens]
        draft = self._make_plan(prompt) if len(prompt) >= self._min_prompt else None
        self._native.reserve(len(prompt))
        if draft is None:
            self._start_progress(len(tokens))
            self._read(tokens)
        else:
            self._read_and_compress(self._with_last(tokens, draft.expected.n_last), draft)

    def _must_read_again(self, tokens: list[int]) -> bool:
        n_past = self._llama.n_tokens
        if self.starts_in_prefix():
            n_pos_prefix = self._native.stats().n_pos_prefix
            self._notify(f"the conversation changed before position {n_pos_prefix}: reading it again")
            return True
        if len(tokens) > max(n_past, self._min_prompt):
            self._notify(f"{len(tokens)} new tokens after {n_past}: reading all again to compress them together")
            return True
        return False

    def _with_last(self, tokens: list[int], n_last: int) -> list[int]:
        """Take back the last tokens of a whole cache where the new ones are fewer than those that observe."""
        n_past = self._llama.n_tokens
        n_back = max(0, n_last - len(tokens))
        n_left = n_past - n_back
        cut_back(self._llama, n_left)
        return [*self._llama.input_ids[n_left:n_past].tolist(), *tokens]

    def _read_and_compress(self, tokens: list[int], draft: DraftPlan) -> None:
        plan = draft.expected
        n_head = len(tokens) - plan.n_last
        repetition = self._repetition(tokens[:n_head], plan)
        self._start_progress(len(tokens) + (repetition.n_tokens if repetition else 0))
        self._read(tokens[:n_head])
        try:
            self._scores = self._second_pass(repetition, plan) if repetition else None
            arm(self._native, plan)
            self._read(tokens[n_head:])
            if plan.policy.lookahead:
                self._waiting = draft
            else:
                self._compress(draft)
        except BaseException as error:
            with suppress(NativeError):
                self._native.score_arm(0)
            if not (isinstance(error, NativeError) and error.status == STATUS_NO_MEMORY):
                raise
            self._notify(f"the chat goes on uncompressed: {error}")
            self._read(tokens[len(tokens) - (plan.n_prompt - self._llama.n_tokens) :])

    def _repetition(self, tokens: list[int], plan: Plan) -> Repetition | None:
        if not plan.policy.scorer.needs_second_pass:
            return None
        return Repetition(self._llama, [*self._llama.input_ids[: self._llama.n_tokens].tolist(), *tokens])

    def _second_pass(self, repetition: Repetition, plan: Plan) -> list[Floats]:
        with self.turn.second_pass():
            return repetition.scores(self._native, self._read_batches, plan.policy.scorer)

    def _look_ahead(self, draft: DraftPlan) -> None:
        """Compress when the last observing token of the answer is in the cache."""
        if self._llama.n_tokens < draft.expected.n_prompt + draft.expected.policy.lookahead:
            return
        self._waiting = None
        try:
            self._compress(draft)
        except NativeError as error:
            with suppress(NativeError):
                self._native.score_arm(0)
            self._notify(f"the chat goes on uncompressed: {error}")

    def _compress(self, draft: DraftPlan) -> None:
        scores, self._scores = self._scores, None  # many numbers, of no use afterwards
        with self.turn.select():
            self._plan = compress(self._native, draft, int(self._llama.n_threads_batch), scores)

    def _read(self, tokens: list[int]) -> None:
        self._read_batches(tokens, self.turn)

    def _read_batches(self, tokens: list[int], turn: TurnTimer | None = None) -> None:
        for start in range(0, len(tokens), self._llama.n_batch):
            batch = tokens[start : start + self._llama.n_batch]
            try:
                with interruptible(self._native):
                    self._eval(batch)
            except BaseException:
                cut_back(self._llama, self._llama.n_tokens)  # some ubatches of the batch may be in the cache
                raise
            if turn:  # a repetition is not counted
                turn.n_read += len(batch)
            self._n_done += len(batch)
            self._on_progress(self._n_done, self._n_total)

    def _start_progress(self, n_total: int) -> None:
        self._n_done, self._n_total = 0, n_total

    def _eval(self, tokens: list[int]) -> None:
        try:
            self._evaluate(tokens)
            self._native.synchronize()
        except RuntimeError as error:
            raise _decode_error(error, self._llama.n_tokens) from error


def _decode_error(error: RuntimeError, n_tokens: int) -> Exception:
    words = str(error).split()
    if words[:2] != ["llama_decode", "returned"]:
        return error
    reason = _DECODE_FAILURES.get(int(words[2]), "unknown failure")
    return NativeError(
        f"llama_decode failed after position {n_tokens}: {reason} (status {words[2]})",
        STATUS_COMPUTE,
    )
