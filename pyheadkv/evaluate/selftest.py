"""Whether this installation computes what it should on this machine, device and model: checks of half a minute.

Stock means upstream's own path in the same library, in a context that pyheadkv never touched. (That an unpatched
library computes the same bits is tested where one is built: scripts/check.) The yardstick for what need not be equal to
the bit is how far stock is from itself when it reads the prompt in other pieces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyheadkv.calibrate.haystack import paragraphs
from pyheadkv.engine.llama import count_read, cut, has_vocabulary, logits
from pyheadkv.engine.load import opened
from pyheadkv.evaluate.engine import Engine
from pyheadkv.evaluate.metrics import kl_divergence, log_softmax, top1_agreement
from pyheadkv.model.shape import ModelShape
from pyheadkv.policy.plan import DraftPlan, draft_plan
from pyheadkv.policy.text import parse_policy

if TYPE_CHECKING:
    import llama_cpp

# together no more than 256: beyond, stock with several threads adds up in an order that depends on its cache's size
N_PROMPT, N_NEXT = 220, 24
N_CTX = 256
_OTHER_PIECE = 37  # tokens that stock reads at a time, for the yardstick
_FACTOR, _LEAST_KL = 3, 2e-2  # nats; on a quantised cache stock has one order, and no distance from itself
_SLACK_OF_LAYER = 1024  # bytes: alignment, first rows and lengths

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Check:
    """What was checked, whether it holds, and the figures."""

    name: str
    is_passed: bool
    words: str
    seconds: float


def run_checks(path: Path, shape: ModelShape, type_k: str, type_v: str, **options: Any) -> Iterator[Check]:
    """All checks, one after the other.

    Parameters
    ----------
    path, shape
        of the model
    type_k, type_v
        cache types
    options
        of `pyheadkv.engine.load.load`

    Raises
    ------
    HeadKVError
        the model cannot be loaded or compressed
    """
    types = {"type_k": type_k, "type_v": type_v}
    options = {"n_ctx": N_CTX, **types, **options}
    with opened(path, n_cells=0, **options) as llama:
        tokens = _tokens(llama)
        stock = _stock(llama, tokens, N_PROMPT)
        other = _log_probs(_stock(llama, tokens, _OTHER_PIECE))
    truth = _log_probs(stock)
    limit = max(_FACTOR * kl_divergence(truth, other), _LEAST_KL)

    def near(name: str, found: Callable[[], tuple[Logits, Logits]]) -> Check:
        start = time.perf_counter()
        ours, theirs = map(_log_probs, found())
        kl, agreement = kl_divergence(theirs, ours), top1_agreement(theirs, ours)
        words = f"KL {kl:.1e} nats, limit {limit:.1e}; {100 * agreement:.0f} % of the tokens alike"
        return Check(name, bool(kl <= limit), words, time.perf_counter() - start)

    with opened(path, **options) as llama:
        engine = Engine(llama)
        yield _off(engine, tokens, stock)
        yield _by_layers(engine, tokens, stock)

        def compressed(budget: str, attention: str = "fused") -> Logits:
            return _compressed(engine, tokens, _draft(shape, budget, types), attention)

        yield near("every row kept = stock", lambda: (compressed("100%"), stock))
        yield near(
            "our kernel = upstream's operations", lambda: (compressed("25%"), compressed("25%", attention="unfused"))
        )
        yield _memory(engine, tokens, _draft(shape, "25%", types), shape, types)


def _off(engine: Engine, tokens: Sequence[int], stock: Logits) -> Check:
    start = time.perf_counter()
    engine.read_only(tokens[:N_PROMPT])
    ours = _next(engine.llama, tokens)
    n_other = int((ours != stock).sum())
    return Check("nothing compressed = stock", n_other == 0, _count(n_other, stock), time.perf_counter() - start)


def _by_layers(engine: Engine, tokens: Sequence[int], stock: Logits) -> Check:
    name, start, llama = "read layer by layer = stock", time.perf_counter(), engine.llama
    if reason := engine.native.read_reason():
        return Check(name, True, f"this model is not read so: {reason}", 0.0)
    engine.forget()
    found = []
    for part in (tokens[:N_PROMPT], *([token] for token in tokens[N_PROMPT:])):
        engine.native.read(part)
        count_read(llama, part)
        found.append(logits(llama).copy())
    engine.forget()
    n_other = int((np.stack(found[1:]) != stock).sum())
    return Check(name, n_other == 0, _count(n_other, stock), time.perf_counter() - start)


def _count(n_other: int, stock: Logits) -> str:
    return f"{n_other} of {stock.size} logits differ" if n_other else f"{stock.size} logits, bit for bit"


def _memory(engine: Engine, tokens: Sequence[int], draft: DraftPlan, shape: ModelShape, types: dict[str, str]) -> Check:
    start = time.perf_counter()
    _compressed(engine, tokens, draft, "fused")
    n_bytes, plan = engine.native.stats().bytes_hot, draft.expected
    planned = plan.bytes_kept - plan.n_last * shape.bytes_per_token(**types)  # the window stays in the tail
    is_passed = planned <= n_bytes <= planned + _SLACK_OF_LAYER * shape.n_layer
    words = f"{n_bytes} bytes of hot rows, {planned} planned"
    return Check("memory is what was planned", is_passed, words, time.perf_counter() - start)


def _tokens(llama: llama_cpp.Llama) -> list[int]:
    """Prose, or where no text can be read, numbers from the vocabulary."""
    n_tokens = N_PROMPT + N_NEXT
    if has_vocabulary(llama):
        found = llama.tokenize("\n\n".join(paragraphs()[:8]).encode())[:n_tokens]
        if len(found) == n_tokens:
            return found
    drawn: list[int] = np.random.default_rng(0).integers(0, llama.n_vocab(), n_tokens).tolist()
    return drawn


def _stock(llama: llama_cpp.Llama, tokens: Sequence[int], n_piece: int) -> Logits:
    """Logits of upstream's own cache, whose prompt is read in pieces."""
    cut(llama, 0)
    for first in range(0, N_PROMPT, n_piece):
        llama.eval(tokens[first : min(first + n_piece, N_PROMPT)])
    return _next(llama, tokens)


def _compressed(engine: Engine, tokens: Sequence[int], draft: DraftPlan, attention: str) -> Logits:
    engine.forget()
    engine.native.attention_set(attention)
    engine.compress_prompt(tokens[:N_PROMPT], draft)
    return _next(engine.llama, tokens)


def _next(llama: llama_cpp.Llama, tokens: Sequence[int]) -> Logits:
    """Logits after each token behind the prompt, f32 [N_NEXT, n_vocab]."""
    found = []
    for token in tokens[N_PROMPT:]:
        llama.eval([token])
        found.append(logits(llama).copy())
    return np.stack(found)


def _draft(shape: ModelShape, budget: str, types: dict[str, str]) -> DraftPlan:
    draft = draft_plan(shape, parse_policy("snapkv"), budget, N_PROMPT, type_k=types["type_k"], type_v=types["type_v"])
    assert draft is not None  # the prompt is longer than sinks and window
    return draft


def _log_probs(values: Logits) -> Logits:
    return np.stack([log_softmax(row) for row in values])
