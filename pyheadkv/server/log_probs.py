"""Log probabilities of the tokens of an answer: of the model, before anything is done to draw one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyheadkv.engine.llama import piece

if TYPE_CHECKING:
    import llama_cpp


@dataclass(frozen=True)
class TokenLogProb:
    """A token as bytes, with its natural log probability."""

    data: bytes
    value: float

    @property
    def text(self) -> str:
        """The bytes as text; they may be a part of a character."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True)
class TokenLogProbs:
    """A token that was said, and the likeliest ones in its place, the likeliest first."""

    said: TokenLogProb
    top: tuple[TokenLogProb, ...]


def log_probs(llama: llama_cpp.Llama, logits: npt.NDArray[np.float32], token: int, n_top: int) -> TokenLogProbs:
    """Of a token that was drawn.

    Parameters
    ----------
    logits
        it was drawn from, f32 [n_vocab]
    n_top
        of the likeliest tokens to name
    """
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    top = np.argpartition(-values, n_top)[:n_top] if n_top < len(values) else np.arange(len(values))
    top = top[np.argsort(-values[top], kind="stable")]

    def of(which: int) -> TokenLogProb:
        return TokenLogProb(piece(llama, which), float(values[which]))

    return TokenLogProbs(of(token), tuple(of(int(which)) for which in top))
