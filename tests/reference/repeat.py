"""KVzip's scores in NumPy, from the formula: the model reads the prompt and each part after it, all of it dense."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.reference.attention import Array
from tests.reference.llama import forward, round_f16
from tests.reference.score import causal_attention
from tests.tiny import Tiny, make_weights


def repeated_scores(tiny: Tiny, prompt: Sequence[int], parts: Sequence[tuple[int, int, Sequence[int]]]) -> list[Array]:
    """Largest attention from a part's tokens to the positions that it repeats, https://arxiv.org/abs/2505.23416.

    Parameters
    ----------
    prompt
        tokens from position 0 on
    parts
        first position, end, and the tokens read after the prompt to repeat them

    Returns
    -------
    for each layer [n_head_kv, len(prompt)], the maximum over the group
    """
    weights = make_weights(tiny)
    scores = [np.zeros((n, len(prompt))) for n in tiny.n_head_kv]
    for first, end, tokens in parts:
        truth = forward(tiny, weights, [*prompt, *tokens], is_f16=True)
        for il, layer in enumerate(scores):
            attention = causal_attention(round_f16(truth.q[il]), truth.k[il], len(tokens)).max(axis=1)
            groups = attention.reshape(len(layer), -1, attention.shape[1])
            layer[:, first:end] = groups.max(axis=1)[:, first:end]
    return scores
