"""The same cases through kvpress (arXiv 2510.00636): its methods on the dequantised GGUF, to be put beside ours.

kvpress, torch and transformers are no dependencies; where one is missing, one line says so. Tokens, answers and scores
are made as everywhere here, so that only the cache differs. A method compresses while a prompt is read, so every
measurement reads it anew. Computed in float32; bytes are its cache's numbers at two bytes each, as on a GPU: methods
that differ between heads only mask there, and keep a cache of full size.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pyheadkv.errors import EvaluationError, UsageError, one_line
from pyheadkv.evaluate.cases import Case
from pyheadkv.evaluate.generate import evaluate_case
from pyheadkv.evaluate.metrics import LogProbs
from pyheadkv.evaluate.prompted import IN, CasePrompter
from pyheadkv.evaluate.results import FULL
from pyheadkv.evaluate.runner import Outcome, Reading
from pyheadkv.policy.budget import Budget

CACHE = "kvpress"  # stands where cache types stand
LIBRARIES = ("torch", "transformers", "kvpress")
PRESSES = {
    "snapkv": ("SnapKVPress",),
    "adakv": ("AdaKVPress", "SnapKVPress"),
    "expected-attention": ("ExpectedAttentionPress",),
    "adakv-expected-attention": ("AdaKVPress", "ExpectedAttentionPress"),
    "streamingllm": ("StreamingLLMPress",),
    "tova": ("TOVAPress",),
    "knorm": ("KnormPress",),
    "keydiff": ("KeyDiffPress",),
}
_BYTES = 2


@dataclass(frozen=True)
class Press:
    """A method of kvpress with its settings, at a budget; name is "kvpress:" and what the user typed."""

    name: str
    budget: Budget
    classes: tuple[str, ...]
    settings: dict[str, float]


def parse_press(text: str, budget: Budget) -> Press:
    """snapkv, or with settings of its class: snapkv:window_size=16.

    Raises
    ------
    UsageError
        an unknown method, or settings that are no numbers
    """
    name, _, words = text.partition(":")
    if name not in PRESSES:
        raise UsageError(f"--kvpress {name[:40]!r} is not one of {', '.join(PRESSES)}")
    settings: dict[str, float] = {}
    for word in filter(None, words.split(",")):
        key, _, value = word.partition("=")
        try:
            settings[key] = int(value) if value.isdecimal() else float(value)
        except ValueError:
            raise UsageError(f"--kvpress {text[:80]}: {word[:40]!r} cannot be read, expected name=number") from None
    return Press(f"{CACHE}:{text}", budget, PRESSES[name], settings)


def libraries() -> dict[str, ModuleType]:
    """kvpress and what it needs.

    Raises
    ------
    UsageError
        one is missing
    """
    found: dict[str, ModuleType] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.import_module(name)
        except ImportError as error:
            reason = one_line(error)[:120]
            needed = " ".join(LIBRARIES)
            raise UsageError(f"--kvpress needs {name} ({reason}): pip install {needed} into this Python") from None
    return found


def versions() -> dict[str, str]:
    """Of the libraries, as far as they tell."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


class PressRunner:
    """Measures cases as `pyheadkv.evaluate.runner.Runner` does, with kvpress.

    Parameters
    ----------
    path
        the GGUF; it is dequantised when the first case is read
    case_prompter
        whose tokens are used
    n_threads
        by default torch's own choice

    Raises
    ------
    UsageError
        a library is missing
    """

    def __init__(self, path: Path, case_prompter: CasePrompter, n_threads: int | None = None) -> None:
        self._libraries = libraries()
        self._path = path
        self._prompter = case_prompter
        if n_threads:
            self._libraries["torch"].set_num_threads(n_threads)

    @cached_property
    def _model(self) -> Any:
        torch, transformers = self._libraries["torch"], self._libraries["transformers"]
        folder, name = str(self._path.parent), self._path.name
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        except Exception as error:  # of the library's many parts; an unknown architecture, mostly
            reason = one_line(error)[:200]
            raise EvaluationError(f"transformers cannot read {self._path}: {reason}") from error
        return model.eval()

    def read(self, case: Case, question: str = IN, reference: LogProbs | None = None) -> Reading:
        """Let the whole cache answer."""
        clock = time.monotonic()
        prompted = self._prompter.prompt(case, question)
        generator = self._generator()
        generator.read_prompt(prompted.tokens, None)
        found = evaluate_case(generator, self._prompter.prompter, prompted, reference)
        n_bytes = generator.n_bytes
        seconds = time.monotonic() - clock
        full = Outcome(found.figures, found.output, len(prompted.tokens), 1.0, n_bytes, n_bytes, n_bytes, FULL, seconds)
        return Reading(prompted, full, found.log_probs if reference is None else reference)

    def measure(self, reading: Reading, press: Press) -> Outcome:
        """Read the case again with a method at work, and let the model answer.

        Raises
        ------
        EvaluationError
            the method refuses its settings or the prompt
        """
        clock = time.monotonic()
        keep_ratio = float(press.budget.value)
        generator = self._generator()
        try:
            generator.read_prompt(reading.prompted.tokens, self._press(press, keep_ratio))
            found = evaluate_case(generator, self._prompter.prompter, reading.prompted, reading.log_probs)
        except (AssertionError, TypeError, ValueError, RuntimeError) as error:
            reason = one_line(error)[:200]
            where = f"{press.name} at {press.budget.request}, case {reading.prompted.case.id}"
            raise EvaluationError(f"{where}: {reason}") from error
        return replace(
            reading.full,
            figures=found.figures,
            output=found.output,
            keep_ratio=keep_ratio,
            bytes_kept=round(keep_ratio * reading.full.bytes_full),
            bytes_measured=generator.n_bytes,
            resolved=press.name,
            seconds=time.monotonic() - clock,
        )

    def close(self) -> None:
        """Nothing stays between two cases."""

    def _generator(self) -> _TorchGenerator:
        return _TorchGenerator(self._libraries["torch"], self._libraries["transformers"], self._model)

    def _press(self, press: Press, keep_ratio: float) -> Any:
        module = self._libraries["kvpress"]
        *outer, inner = (getattr(module, name) for name in press.classes)
        made = inner(compression_ratio=1 - keep_ratio, **press.settings)
        for wrap in outer:
            made = wrap(made)
        return made


class _TorchGenerator:
    """A transformers model with a cache of its own; positions go on as if nothing had been left out."""

    def __init__(self, torch: Any, transformers: Any, model: Any) -> None:
        self._torch = torch
        self._model = model
        self._cache = transformers.DynamicCache()
        self._n_tokens = 0
        self._logits: Any = None
        self.n_bytes = 0

    def read_prompt(self, tokens: Sequence[int], press: Any) -> None:
        """Read a prompt, compressing it if a press is given."""
        with press(self._model) if press is not None else nullcontext():
            self.read(tokens)
        layers = self._cache.layers
        self.n_bytes = sum(layer.keys.numel() + layer.values.numel() for layer in layers) * _BYTES

    def read(self, tokens: Sequence[int]) -> None:
        """Read tokens after those that are there."""
        if not tokens:
            return
        torch, n = self._torch, len(tokens)
        positions = torch.arange(self._n_tokens, self._n_tokens + n).unsqueeze(0)
        with torch.no_grad():
            found = self._model(
                input_ids=torch.tensor([list(tokens)]),
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._logits = found.logits[0, -1]
        self._n_tokens += n

    def go_back(self, n_tokens: int) -> None:
        """Forget the last tokens."""
        if n_tokens:
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys[:, :, :-n_tokens], layer.values[:, :, :-n_tokens]
        self._n_tokens -= n_tokens

    def logits(self) -> npt.NDArray[np.float32]:
        """Of the token after the last one, f32 [n_vocab]."""
        return np.asarray(self._logits.float().numpy(), dtype=np.float32)
