"""What is known of GGUF keys alone to be unsupported."""

from __future__ import annotations

import pytest

from pyheadkv.model.support import unsupported_reason


@pytest.mark.parametrize(
    ("arch", "keys", "reason"),
    [
        ("llama", {}, None),
        ("an-architecture-of-tomorrow", {}, None),
        ("mamba2", {}, "is recurrent"),
        ("qwen3next", {}, None),
        ("qwen4exp", {}, "sparse-attention index"),
        ("bert", {}, "is an encoder"),
        ("t5", {}, "position bias"),
        ("bloom", {}, "uses ALiBi"),
        ("jais", {"attention.max_alibi_bias": 8.0}, "uses ALiBi"),
        ("jais", {}, None),
        ("baichuan", {"block_count": 40}, "uses ALiBi"),
        ("baichuan", {"block_count": 32}, None),
        ("grok", {}, "cannot use flash attention"),
        ("qwen2vl", {}, None),
        ("gemma3", {"attention.sliding_window": 512, "block_count": 6}, None),
        ("gemma3", {"attention.sliding_window": 512, "block_count": 5}, "a sliding window in each layer"),
        ("gemma3", {}, None),
        ("gemma2", {"block_count": 1}, "a sliding window in each layer"),  # slides without being told
        ("gemma2", {"block_count": 2, "attention.sliding_window_pattern": 1}, "no layer that has it"),
        ("laguna", {"block_count": 1, "attention.sliding_window": 8}, "no layer that has it"),
        ("gemma4", {"block_count": 2, "attention.sliding_window": 8}, "a sliding window in each layer"),
        ("lfm2", {"attention.sliding_window": 4096}, "a sliding window in each layer"),
        ("lfm2", {}, None),
        ("llama4", {"attention.sliding_window": 0}, "ends the process"),
        ("llama-embed", {}, "is an encoder"),
        ("graniteswitch", {}, "which adapter each token chose"),
        ("plm", {}, "ends the process"),
        ("gptj", {}, "is a name"),
        ("exaone4", {"attention.sliding_window": 4096, "block_count": 64}, None),
        ("exaone4", {"attention.sliding_window": 4096, "block_count": 30}, None),
        ("llama", {"attention.sliding_window": 4096}, None),  # Mistral 7B: llama.cpp ignores the key
        ("phi3", {"attention.sliding_window": 2047}, None),  # llama.cpp has it switched off
        ("deepseek2", {"attention.kv_lora_rank": 512, "attention.key_length_mla": 192}, "(MLA, rank 512)"),
        ("minicpm3", {"attention.kv_lora_rank": 256}, None),  # expands K and V before they are cached
        ("llama", {"attention.causal": False}, "attends to later tokens"),
    ],
)
def test_unsupported(arch: str, keys: dict[str, object], reason: str | None) -> None:
    metadata = {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in keys.items()}}
    found = unsupported_reason(metadata)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(f"architecture {arch} ")
        assert reason in found


def test_unsupported_without_an_architecture() -> None:
    assert unsupported_reason({}) == "general.architecture is missing"
