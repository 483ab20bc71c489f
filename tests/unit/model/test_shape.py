"""Shapes from GGUF keys, cache types, and what is known to be unsupported."""

from __future__ import annotations

import re

import pytest

from pyheadkv.errors import ModelError, UsageError
from pyheadkv.model.shape import (
    CACHE_TYPES,
    LayerShape,
    ModelShape,
    parse_cache_type,
    shape_from_metadata,
)

SMOLLM2: dict[str, object] = {
    "general.architecture": "llama",
    "general.name": "SmolLM2 135M",
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
}


def changed(**changes: object) -> dict[str, object]:
    """SMOLLM2 with keys replaced (`__` for `.`), or removed where None."""
    metadata = SMOLLM2 | {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in metadata.items() if value is not None}


def test_a_plain_model() -> None:
    shape = shape_from_metadata(SMOLLM2)
    assert (shape.architecture, shape.name, shape.n_ctx_train) == ("llama", "SmolLM2 135M", 8192)
    assert shape.layers[29] == LayerShape(29, 9, 3, 64, 64)
    assert (shape.n_layer, shape.n_kv_heads, shape.n_head_kv) == (30, 90, (3,) * 30)
    assert shape.bytes_per_token() == 90 * 2 * 64 * 2


def test_defaults_are_those_of_llama_cpp() -> None:
    shape = shape_from_metadata(changed(llama__attention__head_count_kv=None, general__name=None))
    assert shape.n_head_kv == (9,) * 30
    assert shape.name == ""


def test_head_sizes_of_their_own_and_unequal_layers() -> None:
    shape = shape_from_metadata(
        changed(
            llama__block_count=4,
            llama__attention__head_count=[8, 8, 0, 4],
            llama__attention__head_count_kv=[2, 8, 0, 1],
            llama__attention__key_length=128,
            llama__attention__value_length=96,
        )
    )
    # the layer without attention has no cache, the others keep their index
    assert [(layer.il, layer.n_head, layer.n_head_kv) for layer in shape.layers] == [(0, 8, 2), (1, 8, 8), (3, 4, 1)]
    assert (shape.n_layer, shape.n_kv_heads) == (3, 11)
    assert shape.row_bytes(0, "f16", "q8_0") == 128 * 2 + 3 * 34
    assert shape.bytes_per_token("f16", "q8_0") == 11 * (256 + 102)


def test_layers_that_are_passed_again_have_a_cache_each_time() -> None:
    keys = {"block_count": 2, "num_loops": 3, "attention.head_count": 4, "attention.key_length": 8}
    keys |= {"attention.value_length": 8, "context_length": 64}
    metadata = {"general.architecture": "nanbeige", **{f"nanbeige.{key}": value for key, value in keys.items()}}
    assert [layer.il for layer in shape_from_metadata(metadata).layers] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ModelError, match=r"block_count is 2 and nanbeige\.num_loops 257, expected at most 512 layers"):
        shape_from_metadata({**metadata, "nanbeige.num_loops": 257})


def test_draft_layers_have_no_cache() -> None:
    assert shape_from_metadata(changed(llama__nextn_predict_layers=2)).n_layer == 28


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general__architecture": None}, "general.architecture is missing, expected a string"),
        ({"general__architecture": 7}, "general.architecture is 7, expected a string"),
        ({"llama__block_count": None}, "llama.block_count is missing, expected a whole number"),
        ({"llama__block_count": 0}, "llama.block_count is 0, expected at least 1"),
        ({"llama__block_count": 4_000_000_000}, "llama.block_count is 4000000000, expected at most 512"),
        ({"llama__block_count": "30"}, "llama.block_count is '30', expected a whole number of at least 0"),
        ({"llama__block_count": True}, "llama.block_count is True, expected a whole number of at least 0"),
        ({"llama__context_length": -1}, "llama.context_length is -1, expected a whole number of at least 0"),
        ({"llama__attention__head_count": None}, "llama.attention.head_count is missing"),
        ({"llama__attention__head_count": [9] * 29}, "head_count has 29 values, expected 30, one for each layer"),
        ({"llama__attention__head_count": 9.0}, "head_count is 9.0, expected a whole number"),
        ({"llama__attention__head_count_kv": [3] * 29 + [-3]}, "head_count_kv is -3 in layer 29, expected a whole"),
        ({"llama__attention__head_count_kv": 4}, "head_count_kv is 4 in layer 0, expected a divisor of its 9 query"),
        ({"llama__attention__head_count_kv": 0}, "head_count_kv is 0 in every layer, expected at least one KV head"),
        ({"llama__embedding_length": None}, "llama.attention.key_length is missing"),
        ({"llama__attention__key_length": [64]}, "llama.attention.key_length is [64], expected a whole number"),
    ],
)
def test_bad_keys_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        shape_from_metadata(changed(**changes))


@pytest.mark.parametrize(
    ("name", "ggml_type", "bytes_of_256"),
    [
        ("f32", 0, 1024),
        ("f16", 1, 512),
        ("bf16", 30, 512),
        ("q8_0", 8, 272),
        ("q4_0", 2, 144),
        ("q4_1", 3, 160),
        ("iq4_nl", 20, 144),
        ("q5_0", 6, 176),
        ("q5_1", 7, 192),
    ],
)
def test_cache_types(name: str, ggml_type: int, bytes_of_256: int) -> None:
    assert parse_cache_type(f" {name.upper()} ").ggml_type == ggml_type
    shape = ModelShape("llama", "", 8, (LayerShape(0, 1, 1, 256, 256),))
    assert shape.row_bytes(0, name, name) == 2 * bytes_of_256


def test_every_cache_type_is_tested() -> None:
    assert len(CACHE_TYPES) == 9
    assert all(name == cache_type.name for name, cache_type in CACHE_TYPES.items())


def test_unknown_cache_type_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown cache type 'q4_k', known are f32, f16, bf16, q8_0"):
        parse_cache_type("q4_k")


def test_a_row_is_whole_blocks() -> None:
    shape = ModelShape("phi2", "", 8, (LayerShape(0, 1, 1, 64, 80),))
    assert shape.row_bytes(0, "q8_0", "f16") == 68 + 160
    with pytest.raises(ModelError, match="q8_0 stores blocks of 32 elements, but this model's V vectors have 80"):
        shape.row_bytes(0, "f16", "q8_0")
