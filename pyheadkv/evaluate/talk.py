"""Measure chats: one text, several questions one after the other, through `HeadKV` as everybody chats."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyheadkv.calibrate.prompts import Prompter
from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.beginning import n_same
from pyheadkv.engine.llama import cut, empty, is_end, tokens_of
from pyheadkv.engine.load import opened
from pyheadkv.engine.native import Native
from pyheadkv.engine.template import ChatTemplate
from pyheadkv.evaluate.cases import Case
from pyheadkv.evaluate.metrics import LogProbs, all_substr
from pyheadkv.evaluate.results import FULL
from pyheadkv.evaluate.runner import ROOM, Outcome
from pyheadkv.evaluate.tasks.make import Sizes
from pyheadkv.evaluate.tasks.talks import Talk
from pyheadkv.model.shape import ModelShape
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.policy import PolicyChoice
from pyheadkv.policy.trial import Trial
from pyheadkv.profile import Profile

if TYPE_CHECKING:
    import llama_cpp

# what becomes of rows that are not kept, and of answers: name -> options of HeadKV
ARCHIVES: dict[str, dict[str, Any]] = {
    "archive": {"archive": "disk", "rereads_answers": True, "exact": True},
    "as-generated": {"archive": "disk", "rereads_answers": False, "exact": True},
    "none": {"archive": "none"},
}
_TURN_ROOM = 96  # tokens of a question, an answer, and what stands around them


@dataclass(frozen=True)
class TalkTrial:
    """A trial with one of `ARCHIVES`."""

    trial: Trial
    archive: str

    @property
    def name(self) -> str:
        """Policy and archive."""
        return f"{self.trial.name}, {self.archive}"

    @property
    def budget(self) -> Budget:
        """Of the trial."""
        return self.trial.budget

    @property
    def policy(self) -> PolicyChoice:
        """Of the trial."""
        return self.trial.policy

    @property
    def profile(self) -> Profile | None:
        """Of the trial."""
        return self.trial.profile


@dataclass(frozen=True)
class TalkReading:
    """A chat, and what the whole cache said."""

    talk: Talk
    full: Outcome
    log_probs: None = None


class TalkRunner:
    """Measures chats on the Llama of the caller, whose conversation is lost.

    Parameters
    ----------
    llama
        with flash attention and a chat template, best made by `pyheadkv.load`
    shape
        of its model
    type_k, type_v
        its cache types, for bytes
    """

    def __init__(self, llama: llama_cpp.Llama, shape: ModelShape, type_k: str = "f16", type_v: str = "f16") -> None:
        self._llama: Any = llama
        self._template = ChatTemplate(llama)
        self._native = Native(llama)
        self._bytes_per_token = shape.bytes_per_token(type_k, type_v)
        prompter = Prompter(llama)
        self.sizes = Sizes(prompter.count, len(prompter.prompt("", "").tokens))

    def read(self, case: Case, question: str, reference: LogProbs | None = None) -> TalkReading:
        """Chat on the whole cache."""
        assert isinstance(case, Talk)
        self.close()
        return TalkReading(case, self._chat(case, FULL, {"budget": FULL, "archive": "none"}))

    def measure(self, reading: TalkReading, trial: TalkTrial) -> Outcome:
        """The same chat on a compressed one. The text is not read again where its rows are there."""
        options = {"policy": trial.policy, "budget": trial.budget, "profile": trial.profile, **ARCHIVES[trial.archive]}
        return self._chat(reading.talk, trial.name, options)

    def close(self) -> None:
        """Empty the cache."""
        empty(self._llama)

    def _chat(self, talk: Talk, name: str, options: dict[str, Any]) -> Outcome:
        clock = time.monotonic()
        figures: dict[str, float] = {}
        messages: list[dict[str, str]] = []
        said: list[str] = []
        self._go_back(talk)
        with HeadKV(self._llama, min_prompt=0, **options) as headkv:
            for i, turn in enumerate(talk.turns):
                messages.append({"role": "user", "content": turn.question if i else talk.message})
                tokens = self._template.prompt(messages, turn.prefix).tokens
                said.append(self._answer(tokens, talk.max_new_tokens))
                messages.append({"role": "assistant", "content": f"{turn.prefix}{said[-1]}"})
                figures[f"turn {i + 1}"] = all_substr(said[-1], (turn.answer,))
            stats, plan = headkv.stats(), headkv.plan
        n_pos, full = stats.native.n_pos, stats.bytes_full
        return Outcome(
            {**figures, "score": sum(figures.values()) / len(figures)},
            " | ".join(said),
            n_pos,
            plan.keep_ratio if plan else 1.0,
            plan.bytes_kept if plan else full,
            plan.bytes_full if plan else full,
            stats.bytes_measured,
            str(plan.policy) if plan else name,
            time.monotonic() - clock,
        )

    def _go_back(self, talk: Talk) -> None:
        """Leave nothing of the chat before but rows of the first prompt, whole, where its archive has them."""
        first = self._template.prompt([{"role": "user", "content": talk.message}], talk.answer_prefix).tokens
        n_left, stats = n_same(first, tokens_of(self._llama)), self._native.stats()
        if stats.n_pos_hot:
            n_left = min(n_left, stats.n_pos_hot - 1) if stats.n_pos_archive else 0
        if not cut(self._llama, n_left):
            empty(self._llama)

    def _answer(self, tokens: list[int], n_max: int) -> str:
        """The likeliest answer, one line."""
        out: list[int] = []
        for token in self._llama.generate(tokens, temp=0.0):
            if is_end(self._llama, token) or len(out) == n_max:
                break
            out.append(token)
        text: str = self._llama.detokenize(out, prev_tokens=tokens[-1:]).decode(errors="replace")
        return text.split("\n")[0]


@contextmanager
def open_talk_runner(
    path: Path,
    shape: ModelShape,
    n_tokens: int,
    n_turns: int,
    on_notice: Callable[[str], None],
    *,
    type_k: str = "f16",
    type_v: str = "f16",
    **options: Any,
) -> Iterator[TalkRunner]:
    """Load a model for chats whose first prompt has a length; it is freed afterwards.

    Parameters
    ----------
    options
        handed on to `pyheadkv.load`
    """
    n_ctx = min(shape.n_ctx_train, n_tokens + ROOM + n_turns * _TURN_ROOM)
    with opened(path, n_ctx=n_ctx, type_k=type_k, type_v=type_v, on_notice=on_notice, **options) as llama:
        yield TalkRunner(llama, shape, type_k, type_v)
