"""Reading layer by layer beside stock: what must be equal, bit for bit, and the batches that llama_decode is given."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tests.e2e.context import Context


def batch_sizes(n: int, n_batch: int, n_block: int = 0) -> list[int]:
    """Batches that reading layer by layer makes of n tokens.

    Parameters
    ----------
    n_block
        tokens whose hidden states exist at once; 0: all
    """
    edges = {0, n, *range(0, n, n_block or n or 1)}
    sizes = []
    for first, end in pairwise(sorted(edges)):
        sizes += [min(n_batch, end - begin) for begin in range(first, end, n_batch)]
    return sizes


def decode_batches(context: Context, tokens: list[int], sizes: list[int]) -> None:
    """Evaluate tokens by llama_decode, in these batches."""
    first = 0
    for n in sizes:
        context.llama.eval(tokens[first : first + n])
        first += n
    assert first == len(tokens)


def differences(stock: Context, ours: Context, next_token: int) -> list[str]:
    """What is not the same bit for bit: logits of the last token, all rows, logits of a token that is read next."""
    found = [] if np.array_equal(stock.last_logits(), ours.last_logits()) else ["logits"]
    found += [] if np.array_equal(stock.state(), ours.state()) else ["rows"]
    for context in (stock, ours):
        context.llama.eval([next_token])
    found += [] if np.array_equal(stock.last_logits(), ours.last_logits()) else ["next logits"]
    return found
