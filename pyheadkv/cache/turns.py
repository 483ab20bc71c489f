"""The turns of a conversation: what of a prompt is new, what has to be read again, and whether it is compressed."""

from __future__ import annotations

from collections.abc import Callable

from pyheadkv.cache.prefill import Prefill, Stage
from pyheadkv.cache.stats import TurnTimer
from pyheadkv.cache.sweep import Sweep
from pyheadkv.engine.abi import STATUS_NO_MEMORY
from pyheadkv.engine.llama import context_length, tokens_of
from pyheadkv.errors import NativeError, UsageError
from pyheadkv.policy.plan import DraftPlan


class Turns:
    """Reads prompts and answers, and compresses the cache after a long prompt.

    Parameters
    ----------
    prefill
        reads
    make_plan
        for a prompt; None leaves the cache whole
    min_prompt
        prompts of fewer tokens are left whole
    on_notice
        called with one line
    sweep
        has the archive, where there is one
    rereads_answers
        answers are read again with the next prompt; otherwise their rows stay as they were generated
    """

    def __init__(
        self,
        prefill: Prefill,
        make_plan: Callable[[list[int]], DraftPlan | None],
        *,
        min_prompt: int,
        on_notice: Callable[[str], None],
        sweep: Sweep | None = None,
        rereads_answers: bool = True,
    ) -> None:
        self.prefill = prefill
        self._sweep, self._rereads_answers = sweep, rereads_answers
        self._llama, self._native = prefill.llama, prefill.native
        self._make_plan = make_plan
        self._min_prompt = min_prompt
        self._notify = on_notice

    def starts_in_hot_rows(self) -> bool:
        """Whether the next token would overwrite a position that is compressed: generate() was refused a cut there."""
        return self._llama.n_tokens < self._native.stats().n_pos_hot

    @property
    def n_exact(self) -> int:
        """Positions, from 0 on, whose rows there are and are those of a whole cache."""
        stats = self._native.stats()
        if stats.n_pos_archive > 0 and self._sweep:
            return self._sweep.n_exact
        return 0 if stats.n_pos_hot > 0 else int(self._llama.n_tokens)

    def read_answer(self, tokens: list[int]) -> None:
        """Read tokens that were generated."""
        self.prefill.decode(tokens)
        try:
            self.prefill.compress_if_due()
        except NativeError as error:
            self._goes_on_whole(error)

    def read_prompt(self, tokens: list[int]) -> None:
        """Read the rest of a prompt, whose beginning is in the cache.

        Raises
        ------
        UsageError
            the prompt is longer than the context, or it is to be repeated and has no room there; nothing is read then
        NativeError
            a computation failed; the cache is whole then, up to ``llama.n_tokens``
        KeyboardInterrupt
            Ctrl-C, soon after it; the cache as after an error
        """
        n_prompt, n_ctx = self._llama.n_tokens + len(tokens), context_length(self._llama)
        if n_prompt > n_ctx:
            raise UsageError(f"prompt of {n_prompt} tokens is longer than the context of {n_ctx}")
        if self.prefill.turn.is_used:  # a caller's own loop of eval and sample, without generate
            self.prefill.turn = TurnTimer()
        self.prefill.turn.n_prompt = n_prompt
        self.prefill.stop_observing()
        with self.prefill.turn.prefill():
            if self.prefill.stage is not Stage.COMPRESSED:
                self._read_whole(tokens)
            elif self._sweep and self._sweep.is_parked:
                self._read_whole(self._sweep.reopen(self._rereads_answers) + tokens)
            elif self._must_read_again(tokens):
                tokens = tokens_of(self._llama) + tokens
                self.prefill.forget()
                self._read_whole(tokens)
            else:
                self._read(tokens)
            self.prefill.checkpoints.keep()

    def _read(self, tokens: list[int]) -> None:
        self.prefill.start_progress(len(tokens))
        self.prefill.read(tokens)

    def _read_whole(self, tokens: list[int]) -> None:
        """Read a prompt onto a cache that is not compressed, and compress it if there is something to gain."""
        prompt = tokens_of(self._llama) + tokens
        draft = self._make_plan(prompt) if len(prompt) >= self._min_prompt else None
        if draft is None:
            self._native.reserve(len(prompt))
            self._read(tokens)
            return
        # the last tokens of the cache are taken back where the new ones are fewer than those that observe
        n_left = min(self._llama.n_tokens, len(prompt) - draft.expected.n_last)
        self.prefill.checkpoints.cut(n_left)
        try:
            self.prefill.compress_prompt(prompt[self._llama.n_tokens :], draft)
        except NativeError as error:
            if error.status != STATUS_NO_MEMORY:
                raise
            self._goes_on_whole(error)
            self.prefill.read(prompt[self._llama.n_tokens :])

    def _must_read_again(self, tokens: list[int]) -> bool:
        n_past = self._llama.n_tokens
        if self.starts_in_hot_rows():
            n_pos = self._native.stats().n_pos_hot
            self._notify(f"the conversation changed before position {n_pos}: reading it again")
            return True
        if len(tokens) > max(n_past, self._min_prompt):
            self._notify(f"{len(tokens)} new tokens after {n_past}: reading all again to compress them together")
            return True
        return False

    def _goes_on_whole(self, error: NativeError) -> None:
        self._notify(f"the chat goes on uncompressed: {error}")
