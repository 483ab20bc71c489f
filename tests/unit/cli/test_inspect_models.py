"""`pyheadkv inspect` of models that people run, from their keys alone: the sizes of published configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pyheadkv.cli.inspect import _lines, inspect_model
from pyheadkv.cli.options import InspectOptions

Keys = dict[str, Any]
N_CTX = 131072


def keys(n_layer: int, n_embd: int, n_head: int, n_head_kv: int | list[int], head_size: int, **others: Any) -> Keys:
    """What all of them have; `__` is a dot."""
    return {
        "block_count": n_layer,
        "embedding_length": n_embd,
        "context_length": N_CTX,
        "attention.head_count": n_head,
        "attention.head_count_kv": n_head_kv,
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        **{key.replace("__", "."): value for key, value in others.items()},
    }


def ssm(inner: int, state: int, group: int) -> Keys:
    """Keys of states as Mamba has them."""
    return {"ssm__inner_size": inner, "ssm__state_size": state, "ssm__group_count": group, "ssm__conv_kernel": 4}


def attention_in(layers: tuple[int, ...], n_layer: int, n_head_kv: int) -> list[int]:
    """KV heads of each layer, of a model in which the others have none."""
    return [n_head_kv if il in layers else 0 for il in range(n_layer)]


MODELS: dict[str, tuple[str, Keys]] = {
    "Gemma 3 27B": ("gemma3", keys(62, 5376, 32, 16, 128, attention__sliding_window=1024)),
    "Gemma 3 12B": ("gemma3", keys(48, 3840, 16, 8, 256, attention__sliding_window=1024)),
    "gpt-oss 20B": ("gpt-oss", keys(24, 2880, 64, 8, 64, attention__sliding_window=128)),
    "Llama 4 Scout": ("llama4", keys(48, 5120, 40, 8, 128)),
    "Qwen3-Next 80B-A3B": ("qwen3next", keys(48, 2048, 16, 2, 256, **ssm(4096, 128, 16))),
    "Qwen3.5 27B": ("qwen35", keys(64, 5120, 24, 4, 256, **ssm(6144, 128, 16))),
    "LFM2 1.2B": (
        "lfm2",
        keys(16, 2048, 32, attention_in((2, 5, 8, 10, 12, 14), 16, 8), 64, shortconv__l_cache=3),
    ),
    "Granite 4 H Small": (
        "granitehybrid",
        keys(40, 4096, 32, attention_in((5, 15, 25, 35), 40, 8), 128, **ssm(8192, 128, 1)),
    ),
    "Falcon-H1 7B": ("falcon-h1", keys(44, 3072, 12, 2, 128, **ssm(3072, 256, 1))),
    "DeepSeek V2": (
        "deepseek2",
        keys(60, 5120, 128, 1, 576, attention__key_length_mla=192, attention__kv_lora_rank=512),
    ),
}

# layers with rows that can be compressed, KiB of a token in them, MiB of windows and of states, MiB freed at 128k
EXPECTED = {
    "Gemma 3 27B": (10, 80, 624, 0, 9216),
    "Gemma 3 12B": (8, 64, 480, 0, 7373),
    "gpt-oss 20B": (12, 24, 18, 0, 2765),
    "Llama 4 Scout": (12, 48, 1224, 0, 5530),
    "Qwen3-Next 80B-A3B": (12, 24, 0, 75, 2765),
    "Qwen3.5 27B": (16, 64, 0, 150, 7373),
    "LFM2 1.2B": (6, 12, 0, 0.16, 1382),
    "Granite 4 H Small": (4, 16, 0, 147, 1843),
    "Falcon-H1 7B": (44, 44, 0, 134, 5069),
}


@pytest.fixture
def inspected(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """The report of a file with the keys of a model and no weights to speak of."""
    arch, own = MODELS[request.param]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", arch)
    writer.add_name(request.param)
    for key, value in own.items():
        add = writer.add_array if isinstance(value, list) else writer.add_uint32
        add(f"{arch}.{key}", value)
    writer.add_tensor("output_norm.weight", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    options = InspectOptions(
        model=str(tmp_path / "model.gguf"),
        budget="10%",
        policy="snapkv",
        profile=None,
        score_mix=None,
        n_ctx=N_CTX,
        type_k="f16",
        type_v="f16",
        fit=None,
        as_json=False,
        png=None,
    )
    return inspect_model(options).report


@pytest.mark.parametrize("inspected", EXPECTED, indirect=True)
def test_what_is_compressed_and_what_is_beside(inspected: dict[str, Any]) -> None:
    n_layer, token, windows, states, freed = EXPECTED[inspected["name"]]
    assert inspected["is_supported"]
    assert inspected["shape"]["n_layer"] == n_layer
    assert inspected["bytes_per_token"] == token * 2**10
    assert inspected["beside"]["windows"] / 2**20 == windows
    assert inspected["beside"]["states"] / 2**20 == pytest.approx(states, rel=0.03)
    assert inspected["bytes_freed"][str(N_CTX)] / 2**20 == pytest.approx(freed, abs=0.6)
    lines = "\n".join(_lines(inspected))
    assert f"{n_layer} with a KV cache of all positions" in lines
    assert (" of the last " in lines) == (windows > 0) and ("\nstates " in lines) == (states > 0)
    assert "layer by layer" not in lines, "such models are read batch by batch"


@pytest.mark.parametrize("inspected", ["DeepSeek V2"], indirect=True)
def test_why_nothing_is_compressed(inspected: dict[str, Any]) -> None:
    assert not inspected["is_supported"]
    assert inspected["reason"] == (
        "architecture deepseek2 uses latent attention (MLA, rank 512), which has no rows per KV head"
    )
    assert "beside" not in inspected
