"""The things measured: a model under some settings, prompts that mean nothing, and trials (a policy at a budget)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyheadkv.engine.abi import STATUS_NO_MEMORY
from pyheadkv.engine.llama import logits
from pyheadkv.engine.load import FIRST_CELLS, opened
from pyheadkv.errors import BenchError, NativeError, UsageError
from pyheadkv.model.shape import ModelShape
from pyheadkv.policy.plan import DraftPlan
from pyheadkv.policy.trial import Trial

if TYPE_CHECKING:
    import llama_cpp

ROOM = 512  # positions of our context beside prompt and tokens: for a lookahead, and for a policy that reads twice


@dataclass(frozen=True)
class Setup:
    """Common ground of all measurements of a run.

    Parameters
    ----------
    path, shape
        the model
    n_tokens
        decoded in one turn
    n_rounds
        turns of each side
    n_threads
        None is all CPUs
    seed
        of the prompts
    """

    path: Path
    shape: ModelShape
    type_k: str = "f16"
    type_v: str = "f16"
    n_threads: int | None = None
    n_gpu_layers: int = 0
    n_tokens: int = 24
    n_rounds: int = 5
    seed: int = 0

    def draft(self, trial: Trial, n_prompt: int) -> DraftPlan:
        """Plan of a trial for a prompt.

        Raises
        ------
        UsageError
            the prompt does not fit into the model's context, or the budget compresses nothing
        BudgetError, PolicyError, ProfileError
            the trial does not fit the model or the prompt
        """
        n_needed = n_prompt + self.n_tokens + trial.policy.lookahead
        if n_needed > self.shape.n_ctx_train:
            raise UsageError(
                f"a prompt of {n_prompt} tokens and what comes after it need {n_needed} positions, "
                f"this model has {self.shape.n_ctx_train}"
            )
        draft = trial.draft(self.shape, n_prompt, self.type_k, self.type_v)
        if draft is None:
            raise UsageError(f"budget {trial.budget.request} compresses nothing of {n_prompt} tokens")
        return draft

    def open_stock(self, n_prompt: int, n_ahead: int = 0) -> AbstractContextManager[llama_cpp.Llama]:
        """A context as upstream makes it, never attached: its cache, its flash attention, bit for bit."""
        return self._opened(n_prompt + self.n_tokens + n_ahead, n_cells=0)

    def open_ours(self, n_prompt: int) -> AbstractContextManager[llama_cpp.Llama]:
        """A context whose cache grows on demand, as `pyheadkv.load` makes it."""
        return self._opened(min(n_prompt + self.n_tokens + ROOM, self.shape.n_ctx_train), n_cells=FIRST_CELLS)

    def _opened(self, n_ctx: int, n_cells: int) -> AbstractContextManager[llama_cpp.Llama]:
        types = {"type_k": self.type_k, "type_v": self.type_v}
        threads = {"n_threads": self.n_threads, "n_gpu_layers": self.n_gpu_layers}
        return opened(self.path, n_ctx=n_ctx, n_cells=n_cells, **types, **threads)

    def prompt(self, llama: llama_cpp.Llama, n_prompt: int) -> list[int]:
        """Token ids drawn evenly from the vocabulary, the same every time."""
        ids: list[int] = np.random.default_rng(self.seed).integers(0, llama.n_vocab(), n_prompt).tolist()
        return ids


@contextmanager
def no_memory(trial: Trial) -> Iterator[None]:
    """A compression inside that finds no memory ends with a BenchError."""
    try:
        yield
    except NativeError as error:
        if error.status != STATUS_NO_MEMORY:
            raise
        raise no_memory_error(trial) from error


def no_memory_error(trial: Trial) -> BenchError:
    """The prompt was not compressed."""
    return BenchError(f"{trial.name} at {trial.budget.request}: there was no memory to compress the prompt")


def finish(llama: llama_cpp.Llama) -> None:
    """Wait until all that was evaluated is computed, as a sampler would."""
    logits(llama)
