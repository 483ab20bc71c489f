"""Which rows the cache keeps behind an answer: how many each KV head, and where in the prompt they lie."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, Field

from pyheadkv.chat.session import HeadKV

N_PLACES = 64


class RowMap(BaseModel):
    """The cache behind an answer. Lists are by layer with a cache, then by KV head."""

    answer: int = Field(description="The answer whose field headkv has this number.")
    policy: str
    budget: str
    n_pos: int = Field(description="Positions in the cache.")
    n_compressed: int = Field(description="Of them the first ones, of which not every head keeps each.")
    layers: list[int] = Field(description="Their numbers in the model.")
    rows: list[list[int]]
    places: list[list[list[int]]] = Field(
        description=f"Rows kept of each of {N_PLACES} equal parts of the compressed positions; empty without any."
    )
    bytes_measured: int
    bytes_full: int
    bytes_peak: int


def row_map(headkv: HeadKV, n_answers: int) -> RowMap:
    """The cache as it is now; asked on the thread that lets the model answer."""
    native, stats = headkv.native.stats(), headkv.stats()
    places = _places(headkv, native.n_pos_hot) if native.n_pos_hot else []
    n_tail = native.n_pos - native.n_pos_hot
    return RowMap(
        answer=n_answers,
        policy=str((headkv.plan or headkv).policy),
        budget=headkv.budget.request,
        n_pos=native.n_pos,
        n_compressed=native.n_pos_hot,
        layers=[layer.il for layer in headkv.shape.layers],
        rows=[
            [n_tail + (sum(places[i][ih]) if places else 0) for ih in range(n_head_kv)]
            for i, n_head_kv in enumerate(headkv.shape.n_head_kv)
        ],
        places=places,
        bytes_measured=stats.bytes_measured,
        bytes_full=stats.bytes_full,
        bytes_peak=native.bytes_peak,
    )


def _places(headkv: HeadKV, n_pos: int) -> list[list[list[int]]]:
    return [
        [
            np.bincount(
                headkv.native.positions(i, ih).astype(np.int64) * N_PLACES // n_pos, minlength=N_PLACES
            ).tolist()
            for ih in range(n_head_kv)
        ]
        for i, n_head_kv in enumerate(headkv.shape.n_head_kv)
    ]
