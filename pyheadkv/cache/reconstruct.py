"""The reconstruction pass of KVzip: the model repeats its prompt, and what it needs for that is worth keeping.

    cache      | prompt ........................ |
    pass 1                                       | \\n\\nRepeat the previous context exactly. | part 1 |
    pass 2                                       | ... exactly, starting with (8 tokens) | part 2 |

    score of a position = largest attention from any token of the pass that repeats it

After each pass the cache is cut back to the prompt. The words are those of the paper's code, so that figures can be
compared; the chat template puts the end of the user's message and the beginning of the answer before each part.

Paper: Kim et al., KVzip, https://arxiv.org/abs/2505.23416, section 3.2. Differs from the paper: attention is the
model's own, over all positions, where the released code takes its softmax over sinks, part and repetition alone; parts
are of equal length; what the chat template puts before the message is repeated as well.

A part that lies nearer to its repetition gets more attention, so scores of several parts compare less well than those
of one (of three parts, the last got twice as much as the first on the demo model): a context that has room for the
prompt twice is worth it, for up to 2,048 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyheadkv.cache.select import attention_of
from pyheadkv.engine.llama import context_length, has_vocabulary
from pyheadkv.engine.llama import cut as cut_rows
from pyheadkv.engine.native import Native
from pyheadkv.engine.template import ChatTemplate, template_source
from pyheadkv.errors import UsageError
from pyheadkv.policy.scorers import Scorer

if TYPE_CHECKING:
    import llama_cpp

MAX_PART = 2048
MIN_PART = 64  # parts of fewer tokens would be more asking than repeating
N_BEFORE = 8  # tokens before a part that tell the model where it begins
_ASK_ALL = "\n\nRepeat the previous context exactly."
_ASK_PART = "\n\nRepeat the part of the previous context exactly, starting with"


@dataclass(frozen=True)
class Part:
    """Positions `first` to `end`, and the tokens that ask for them and repeat them."""

    first: int
    end: int
    tokens: list[int]


class Reconstruction:
    """The repetition of a prompt, in parts that fit beside it into the context.

    Parameters
    ----------
    llama
        the model, its context empty or not
    tokens
        to be repeated, from position 0 on
    max_part
        tokens of a part
    cut
        takes the cache back to so many tokens

    Raises
    ------
    UsageError
        there is no room beside the prompt
    ModelError
        the chat template cannot be used
    """

    def __init__(
        self,
        llama: llama_cpp.Llama,
        tokens: Sequence[int],
        max_part: int = MAX_PART,
        cut: Callable[[int], object] | None = None,
    ) -> None:
        self._cut = cut or partial(cut_rows, llama)
        self._n_pos = n_pos = len(tokens)
        ask_all, ask_part, answer = _asking(llama)
        n_ctx = context_length(llama)
        room = n_ctx - n_pos
        n_ask = max(len(ask_all), len(ask_part) + N_BEFORE) + len(answer)
        size = min(max_part, room - n_ask)
        if size < min(MIN_PART, n_pos, max_part):
            raise UsageError(
                f"policy kvzip has the prompt repeated beside it: {room} positions of the context of {n_ctx} "
                f"are free, {n_ask + min(MIN_PART, n_pos)} are needed"
            )
        n_parts = -(-n_pos // size)
        bounds = [i * n_pos // n_parts for i in range(n_parts + 1)]
        self.parts = [
            Part(first, end, [*(_ask(tokens, first, ask_part) if first else ask_all), *answer, *tokens[first:end]])
            for first, end in pairwise(bounds)
        ]

    @property
    def n_tokens(self) -> int:
        """Tokens of all parts, those that ask for them included."""
        return sum(len(part.tokens) for part in self.parts)

    def scores(
        self, native: Native, read: Callable[[list[int]], None], scorer: Scorer
    ) -> list[npt.NDArray[np.float32]]:
        """Let the model repeat. Whatever happens, the cache holds the prompt afterwards, and nothing observes.

        Parameters
        ----------
        native
            the prompt is in its cache, which is whole
        read
            evaluates tokens after those that are there
        scorer
            how repeating tokens (reduce) and query heads (fold) share their attention

        Returns
        -------
        for each layer f32 [n_head_kv, positions of the prompt], not pooled

        Raises
        ------
        NativeError
            a computation failed, or there is no memory for the repetition
        """
        layers = native.layers()
        scores = [np.zeros((layer.n_head_kv, self._n_pos), dtype=np.float32) for layer in layers]
        try:
            for part in self.parts:
                attention = attention_of(native, read, part.tokens, scorer.reduce)
                for layer, found in zip(scores, attention, strict=True):
                    layer[:, part.first : part.end] = fold_heads(
                        found[:, part.first : part.end], len(layer), scorer.fold
                    )
                self._cut(self._n_pos)
        finally:
            self._cut(self._n_pos)
            native.observe(0)
        return scores


def fold_heads(scores: npt.NDArray[Any], n_head_kv: int, fold: str) -> npt.NDArray[Any]:
    """Scores of query heads [n_head, ...] -> of KV heads [n_head_kv, ...], by "max", "mean" or "sum" in each group."""
    folded: npt.NDArray[Any] = getattr(scores.reshape(n_head_kv, -1, *scores.shape[1:]), fold)(axis=1)
    return folded


def _asking(llama: llama_cpp.Llama) -> tuple[list[int], list[int], list[int]]:
    """Tokens that ask for the whole text, for a part of it, and that begin the answer."""
    if not has_vocabulary(llama):  # token ids without words: the repetition alone
        return [], [], []
    asks = [llama.tokenize(text.encode(), add_bos=False, special=False) for text in (_ASK_ALL, _ASK_PART, "\n")]
    has_template = template_source(llama) is not None
    return asks[0], asks[1], ChatTemplate(llama).between() if has_template else asks[2]


def _ask(tokens: Sequence[int], first: int, ask_part: list[int]) -> list[int]:
    return [*ask_part, *tokens[max(0, first - N_BEFORE) : first]]
