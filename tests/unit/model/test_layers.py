"""Which layers attend to all positions, of keys as published files have them."""

from __future__ import annotations

import pytest

from pyheadkv.errors import ModelError
from pyheadkv.model.layers import n_window
from pyheadkv.model.shape import shape_from_metadata

SIZES: dict[str, object] = {
    "context_length": 8192,
    "embedding_length": 256,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
}


def keys_of(arch: str, n_block: int, keys: dict[str, object]) -> dict[str, object]:
    named = {**SIZES, "block_count": n_block, **keys}
    return {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in named.items()}}


@pytest.mark.parametrize(
    ("arch", "n_block", "keys", "full"),
    [
        ("gemma2", 4, {}, [1, 3]),
        ("gemma3", 14, {"attention.sliding_window": 512}, [5, 11]),
        ("gemma3", 3, {}, [0, 1, 2]),
        ("gemma3", 4, {"attention.sliding_window": 8, "attention.sliding_window_pattern": 2}, [1, 3]),
        ("gemma3n", 30, {"attention.sliding_window": 512}, [4, 9, 14, 19]),  # later ones read the rows of these
        (
            "gemma4",
            4,
            {
                "attention.sliding_window": 8,
                "attention.sliding_window_pattern": [True, False, True, False],
                "attention.shared_kv_layers": 2,
            },
            [1],
        ),
        ("gpt-oss", 4, {"attention.sliding_window": 128}, [1, 3]),
        ("cohere2moe", 5, {"attention.sliding_window": 128}, [0, 4]),  # the first of four
        ("smallthinker", 5, {"attention.sliding_window": 0}, [0, 1, 2, 3, 4]),
        ("exaone4", 8, {"attention.sliding_window": 128}, list(range(8))),
        ("exaone4", 64, {}, list(range(3, 64, 4))),
        ("step35", 3, {"attention.sliding_window": 8, "attention.sliding_window_pattern": [0, 1, 1]}, [0]),
        ("llama", 2, {"attention.sliding_window": 8}, [0, 1]),  # ignores the key
        ("qwen3next", 9, {"nextn_predict_layers": 1}, [3, 7]),
        ("qwen35", 4, {"full_attention_interval": 2}, [1, 3]),
        ("qwen35moe", 3, {"attention.recurrent_layers": [True, False, True]}, [1]),
        ("minimax-01", 8, {}, [7]),
        ("falcon-h1", 2, {}, [0, 1]),
        ("jamba", 3, {"attention.head_count_kv": [0, 2, 0]}, [1]),
        ("nemotron_h", 3, {"attention.head_count_kv": [0, 2, 2], "feed_forward_length": [0, 0, 96]}, [1]),
    ],
)
def test_layers_that_attend_to_all_positions(arch: str, n_block: int, keys: dict[str, object], full: list[int]) -> None:
    assert [layer.il for layer in shape_from_metadata(keys_of(arch, n_block, keys)).layers] == full


@pytest.mark.parametrize(
    ("arch", "keys", "n"),
    [
        ("gemma3", {"attention.sliding_window": 1024}, 1024),
        ("gemma2", {}, 4096),
        ("llama4", {"attention.sliding_window": 64}, 8192),
        ("llama4", {"attention.sliding_window": 0}, 0),
        ("smallthinker", {"attention.sliding_window": 64}, 4096),
        ("smallthinker", {}, 0),
        ("mistral3", {"attention.sliding_window": 64}, 0),
    ],
)
def test_window(arch: str, keys: dict[str, object], n: int) -> None:
    assert n_window(keys_of(arch, 4, keys), arch) == n


@pytest.mark.parametrize(
    ("arch", "n_block", "keys", "words"),
    [
        ("gemma3", 2, {"attention.sliding_window": 8}, "attends to a sliding window in every layer"),
        (
            "gemma3",
            2,
            {"attention.sliding_window": 8, "attention.sliding_window_pattern": [True]},
            "gemma3.attention.sliding_window_pattern is [True], expected 2 booleans, one for each layer",
        ),
        ("jamba", 2, {"attention.head_count_kv": [0, 0]}, "is 0 in every layer"),
    ],
)
def test_no_such_layer(arch: str, n_block: int, keys: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError) as error:
        shape_from_metadata(keys_of(arch, n_block, keys))
    assert words in str(error.value)
