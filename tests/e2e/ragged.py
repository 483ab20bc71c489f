"""Ragged prefixes for the end-to-end tests: random kept positions, and a chat that goes on over them."""

from __future__ import annotations

from itertools import cycle, islice

import numpy as np
import numpy.typing as npt

from tests.e2e.context import Context, Logits, make_tokens
from tests.reference.llama import Compressed
from tests.tiny import Tiny

N_POS, N_OBS = 150, 8
N_PREFIX = N_POS - N_OBS

# tokens evaluated together after the compression: what decoding, drafts and a second prompt need
BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 40, 130)
N_NEW = sum(BATCHES)

Kept = list[list[npt.NDArray[np.int64]]]


def make_kept(tiny: Tiny, lengths: tuple[int, ...], seed: int = 0) -> Kept:
    """Random ascending positions, [n_layer][n_head_kv]; the lengths are dealt to the heads in turns."""
    rng, length = np.random.default_rng(seed), cycle(lengths)
    return [
        [np.sort(rng.choice(N_PREFIX, n, replace=False)) for n in islice(length, n_head_kv)]
        for n_head_kv in tiny.n_head_kv
    ]


def flat(kept: Kept) -> list[npt.NDArray[np.int64]]:
    """Layer after layer, head after head, as Native.keep takes it."""
    return [positions for layer in kept for positions in layer]


def compressed(kept: Kept) -> Compressed:
    """The same for the reference."""
    return Compressed(N_POS, N_PREFIX, kept)


def chat_tokens(tiny: Tiny) -> list[int]:
    """The prompt and all later tokens of `run_ragged`."""
    return make_tokens(N_POS + N_NEW, tiny.n_vocab, seed=tiny.seed + 1)


def run_ragged(context: Context, tokens: list[int], kept: Kept, attention: str = "fused") -> Logits:
    """Read the prompt, keep these positions, evaluate the rest in `BATCHES`; logits of the rest."""
    context.decode(tokens[:N_POS])
    context.native.keep(flat(kept), N_OBS)
    context.native.attention_set(attention)
    return decode_batches(context, tokens)


def decode_batches(context: Context, tokens: list[int]) -> Logits:
    """Evaluate the tokens after the prompt in `BATCHES`."""
    logits = []
    for n in BATCHES:
        first = context.n_pos
        logits.append(context.decode(tokens[first : first + n]))
    return np.concatenate(logits)
