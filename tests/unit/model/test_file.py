"""Files that are no models, and models that no text can be generated with, are told by their keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyheadkv.errors import ModelError
from pyheadkv.model.file import check_generates, check_is_model, has_vocabulary

PATH = Path("m.gguf")
LLAMA = {"general.architecture": "llama", "llama.block_count": 2}
EXPERTS: dict[str, object] = {"expert_count": 4, "expert_used_count": 2}


@pytest.mark.parametrize(
    ("keys", "n_tensors", "words"),
    [
        ({"general.type": "adapter"}, 8, r"m\.gguf is an adapter \(LoRA\) for a model, expected a model"),
        ({"general.type": "mmproj"}, 8, "is a projector, the part of a model that reads images or sound"),
        ({"general.architecture": "clip"}, 8, "is a projector"),  # older files do not say their type
        ({"general.type": "imatrix"}, 8, "is an importance matrix"),
        ({"general.type": "novel"}, 8, "is a file of type 'novel', expected a model"),
        ({"general.type": 7}, 8, "is a file of type '7', expected a model"),
        ({"tokenizer.ggml.model": "llama"}, 0, "is a vocabulary without weights, expected a model"),
        ({}, 0, "is a file without weights, expected a model"),
    ],
)
def test_what_a_file_is_instead_of_a_model(keys: dict[str, object], n_tensors: int, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        check_is_model(LLAMA | keys, n_tensors, PATH)


@pytest.mark.parametrize(("keys", "n_tensors"), [({}, 1), ({"general.type": "model"}, 1), ({"split.count": 3}, 0)])
def test_a_model_is_a_model(keys: dict[str, object], n_tensors: int) -> None:
    check_is_model(LLAMA | keys, n_tensors, PATH)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (
            {"general.architecture": "bert"},
            r"m\.gguf cannot generate text: architecture bert is an encoder.*embedding=True",
        ),
        ({"general.architecture": "t5"}, "architecture t5 is an encoder-decoder"),
        ({"general.architecture": "llada"}, "architecture llada is a diffusion model"),
        ({"general.architecture": "eagle3"}, "architecture eagle3 is a draft model"),
        ({"general.architecture": "wavtokenizer-dec"}, "makes sound of tokens"),
        ({"general.architecture": "llama4", "llama4.attention.sliding_window": 0}, "without a window ends the process"),
        (LLAMA | {"llama.block_count": 0}, r"llama\.block_count is 0, expected at least 1"),
        (LLAMA | {"llama.block_count": 2**32 - 1}, r"llama\.block_count is 4294967295, expected at most 512 layers"),
        ({"general.architecture": "llama"}, r"llama\.block_count is missing, expected a whole number"),
    ],
)
def test_what_cannot_generate_text(metadata: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        check_generates(metadata, PATH)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"nextn_predict_layers": 3}, "nextn_predict_layers is 3, expected at most the 2 layers"),
        ({"expert_count": 2000}, "expert_count is 2000, expected at most 1024"),
        ({"expert_count": 4, "expert_used_count": 5}, "expert_used_count is 5, expected 1 to 4 of 4 experts"),
        ({"expert_count": 4, "expert_used_count": [1, 5]}, "expert_used_count is 5, expected 1 to 4 of 4 experts"),
        ({"expert_count": 4}, "expert_used_count is 0, expected 1 to 4 of 4 experts"),
        ({"expert_used_count": 2}, "expert_used_count is 2, expected 0 of 0 experts"),
        (EXPERTS | {"expert_group_count": 3}, "expert_group_count is 3, expected a divisor of the 4 experts"),
        (EXPERTS | {"expert_group_count": 4}, "expert_group_count is 4, expected a divisor of the 4 experts"),
        (EXPERTS | {"expert_group_count": 2}, "expert_group_used_count is 0, expected 1 to 1"),
        ({"attention.layer_norm_rms_epsilon": -1.0}, r"layer_norm_rms_epsilon is -1\.0, expected at least 0"),
        ({"attention.layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan, expected at least 0"),
    ],
)
def test_keys_that_llama_cpp_ends_the_process_on(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=rf"^llama\..*{words}$"):
        check_generates(LLAMA | {f"llama.{key}": value for key, value in keys.items()}, PATH)


@pytest.mark.parametrize(
    "keys",
    [
        {"expert_count": 0, "expert_used_count": 0, "nextn_predict_layers": 2},
        EXPERTS | {"expert_group_count": 1},
        EXPERTS | {"expert_group_count": 2, "expert_group_used_count": 1, "attention.layer_norm_rms_epsilon": 1e-6},
    ],
)
def test_keys_of_real_files(keys: dict[str, object]) -> None:
    check_generates(LLAMA | {f"llama.{key}": value for key, value in keys.items()}, PATH)


def test_an_encoder_will_do_for_embeddings_and_a_diffusion_model_will_not() -> None:
    check_generates({"general.architecture": "bert", "bert.block_count": 2}, PATH, is_embedding=True)
    with pytest.raises(ModelError, match="diffusion"):
        check_generates({"general.architecture": "dream", "dream.block_count": 2}, PATH, is_embedding=True)


def test_recurrent_models_generate() -> None:
    check_generates({"general.architecture": "mamba", "mamba.block_count": 2}, PATH)


@pytest.mark.parametrize(("model", "answer"), [("gpt2", True), (None, True), ("none", False), ("no_vocab", False)])
def test_vocabulary(model: str | None, answer: bool) -> None:
    assert has_vocabulary({"tokenizer.ggml.model": model} if model else {}) is answer
