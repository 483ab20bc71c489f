"""Reconstruction scores: what every KV head is needed for while the model repeats a text (KVzip, arXiv 2505.23416).

It needs no right answers, so it works for any model. KVzip scores single rows; here the largest attention that each row
gets is averaged for every KV head, over plain prose, once for the model.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from pyheadkv.calibrate.haystack import paragraphs
from pyheadkv.calibrate.observer import Observer
from pyheadkv.calibrate.pages import fill, text_of
from pyheadkv.calibrate.prompts import Prompter
from pyheadkv.calibrate.scores import Floats, largest_attention
from pyheadkv.engine.beginning import n_same

REQUEST = "Repeat the text above, word for word."
N_FIRST = 4  # positions that any head attends to, whatever stands there


def make_excerpts(seed: int, n_excerpts: int, n_tokens: int, count_tokens: Callable[[str], int]) -> list[str]:
    """Prose of at most n_tokens tokens each; no sentence is in two excerpts.

    Parameters
    ----------
    count_tokens
        of a sentence
    """
    pool = random.Random(seed).sample(paragraphs(), len(paragraphs()))
    share = len(pool) // n_excerpts
    return [text_of(fill(pool[i * share : (i + 1) * share], n_tokens, count_tokens)) for i in range(n_excerpts)]


def measure_excerpt(observer: Observer, prompter: Prompter, excerpt: str) -> Floats:
    """Let the model read an excerpt, and then read it again as its own repetition.

    Returns
    -------
    [sum of n_head_kv]: mean over the excerpt's positions of the largest attention from any repeating token
    """
    asked = prompter.prompt(f"{excerpt}\n\n{REQUEST}", "")
    repeated = prompter.prompt(f"{excerpt}\n\n{REQUEST}", excerpt).tokens
    n_asked = n_same(asked.tokens, repeated)
    positions = asked.positions(excerpt)
    positions = positions[(positions >= N_FIRST) & (positions < n_asked)]
    observer.read_only(repeated[:n_asked])
    attention = observer.observe(repeated[n_asked:], reduce="max")
    layers = zip(attention, observer.n_head_kv, strict=True)
    return np.concatenate([largest_attention(layer, n_head_kv, positions) for layer, n_head_kv in layers])
