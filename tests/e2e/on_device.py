"""What a device must answer as the CPU does: attention over chosen rows, and which rows are chosen. Of a tiny model."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from pyheadkv.engine.native import Compression
from pyheadkv.policy.scorers import Scorer
from tests.e2e.conftest import MakeContext
from tests.e2e.context import Context, Logits, make_tokens, relative_error
from tests.tiny import Tiny

TINY = Tiny()
N_HEADS = sum(TINY.n_head_kv)
N_OBS, N_PROMPT = 8, 40
# tokens evaluated together after the compression: kernels for few and for many of them
BATCHES = (1, 1, 3, 8, 9)
KEPT = ([0, 1, 5, 9, 30], [3], [], list(range(20)))

# kernels of devices round activations to f16; other rows move the answer by 0.2 and more (test_ragged.py)
DEVICE_ERROR = 2e-2
# near-ties of scores may fall the other way
SAME_ROWS = 0.9


ON_CPU, ON_DEVICE = {"n_gpu_layers": 0}, {"n_gpu_layers": 99}


def decode_batches(context: Context, tokens: list[int]) -> Logits:
    """Logits of tokens that come in BATCHES."""
    return np.concatenate([context.decode(tokens[context.n_pos : context.n_pos + n]) for n in BATCHES])


def attention_error(open_context: MakeContext, cache_type: str, tiny: Tiny = TINY, **layout: Any) -> float:
    """Of the logits over a compressed cache, relative to the CPU's; `layout`: where the layers lie."""
    tokens = make_tokens(N_PROMPT + sum(BATCHES), tiny.n_vocab, seed=5)
    answers = []
    for options in (ON_CPU, layout or ON_DEVICE):
        context = open_context(tiny, cache_type=cache_type, **options)
        context.decode(tokens[:N_PROMPT])
        context.native.keep([np.array(kept, dtype=np.int64) for kept in KEPT], N_OBS)
        answers.append(decode_batches(context, tokens))
    return relative_error(answers[1], answers[0])


def same_rows(open_context: MakeContext) -> float:
    """Share of the rows that the CPU chooses which the device chooses too."""
    tokens = make_tokens(N_PROMPT, TINY.n_vocab, seed=6)
    chosen = []
    for options in (ON_CPU, ON_DEVICE):
        context = open_context(TINY, **options)
        context.arm_and_decode(tokens, N_OBS)
        context.native.compress(Compression(np.full(N_HEADS, N_OBS + 12, dtype=np.uint32), Scorer(n_obs=N_OBS), 2))
        chosen.append(chosen_rows(context))
    assert chosen[0]
    return len(chosen[0] & chosen[1]) / len(chosen[0])


def chosen_rows(context: Context) -> set[tuple[int, int, int]]:
    """(layer, KV head, position) of every hot row."""
    heads = chain.from_iterable(
        ((il, ih) for ih in range(layer.n_head_kv)) for il, layer in enumerate(context.native.layers())
    )
    return {(il, ih, int(pos)) for il, ih in heads for pos in context.native.positions(il, ih)}
