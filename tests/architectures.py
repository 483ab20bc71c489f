"""A tiny random model of every architecture that the pinned llama.cpp can load.

Sizes and keys follow upstream's own tests/test-llama-archs.cpp. Which tensors a model has, and their shapes, is not
said here: llama.cpp makes a model of the keys alone (`llama_model_init_from_user`) and asks for each tensor that it
wants.
"""

from __future__ import annotations

import ctypes
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np

Value = bool | int | float | str | list[int] | list[float]

N_CTX, N_VOCAB = 1024, 128

# architectures of which no tiny model can be made, and why
UNMADE = {
    "clip": "llama.cpp takes it for the part of a model that reads images",
    "gptj": "llama.cpp knows the name and no such model",
    "plm": "llama.cpp ends the process when it makes its attention",
    "gemma4-assistant": "all of its layers draft, and llama.cpp leaves no room for their tensors without a file",
}

# tensors that files of the architecture do not have; with them llama.cpp takes it for another one
_ABSENT = {"rwkv6qwen2": "time_mix_first"}

# tensors by which others are multiplied: with these near 0 nothing would depend on attention
_FACTORS = ("norm.weight", "scale", "rope_freqs.weight")

# files of an architecture that llama.cpp treats in another way: keys that are changed, or taken out
VARIANTS: dict[str, tuple[str, dict[str, Value | None]]] = {
    "deepseek2, not absorbed": (
        "deepseek2",
        {
            "attention.key_length": 192,
            "attention.value_length": 128,
            "attention.key_length_mla": None,
            "attention.value_length_mla": None,
        },
    ),
    "llama, mixture of experts": ("llama", {"expert_count": 2, "expert_used_count": 2}),
    "llama, both ways": ("llama", {"attention.causal": False}),
    "llama4, no window": ("llama4", {"attention.sliding_window": 0}),
    "gemma3, no window": ("gemma3", {"attention.sliding_window": None, "attention.sliding_window_pattern": None}),
    "gemma3, a KV head of two": ("gemma3", {"attention.head_count_kv": 1}),
    "gemma4, layers that read others' rows": (
        "gemma4",
        {
            "block_count": 7,
            "attention.shared_kv_layers": 2,
            "attention.sliding_window_pattern": [1, 0, 1, 1, 0, 1, 0],
        },
    ),
    "qwen2vl, three sections": ("qwen2vl", {"rope.dimension_sections": [16, 24, 24, 0]}),
    "qwen3vl, three sections": ("qwen3vl", {"rope.dimension_sections": [22, 21, 21, 0]}),
    "exaone4, 64 layers": ("exaone4", {"block_count": 64}),
    "baichuan, 40 layers": ("baichuan", {"block_count": 40}),
    "glm4, sections": ("glm4", {"rope.dimension_sections": [16, 24, 24, 0]}),
    "nanbeige, one loop": ("nanbeige", {"num_loops": 1}),
    "lfm2, no window": ("lfm2", {"attention.sliding_window": None}),
    "hy_v4, no index": ("hy_v4", {"attention.indexer.top_k": 0}),
    "deci, a layer without attention": ("deci", {"attention.head_count": [2, 0], "attention.head_count_kv": [2, 0]}),
    "openelm, unequal layers": ("openelm", {"attention.head_count": [2, 4], "attention.head_count_kv": [1, 2]}),
    "qwen3, draft layer": ("qwen3", {"nextn_predict_layers": 1}),
}

_MOE_NAMES = """
    llama4 cohere2moe grok qwen2moe qwen3moe qwen3next qwen3vlmoe qwen35moe qwen4exp phimoe dbrx olmoe arctic
    deepseek deepseek2 deepseek2-ocr deepseek32 dots3note deepseek4 glm4moe glm-dsa exaone-moe bailingmoe
    bailingmoe2 bailingmoe3 dots1 afmoe ernie4_5 ernie4_5-moe hunyuan-moe hy_v3 hy_v4 gpt-oss lfm2moe
    smallthinker llada-moe grovemoe minimax-01 minimax-m2 minimax-m3 rnd1 paddleocr mimo2 kimi-linear kimi-k3
    glm5-next step35 mistral4 mellum laguna maple nomic-bert-moe granitemoe nemotron_h_moe"""
_MOE = _MOE_NAMES.split()
_MLA_NAMES = """
    deepseek2 deepseek32 glm-dsa dots3note kimi-linear bailingmoe3 kimi-k3 glm5-next hy_v4 mistral4"""
_MLA = _MLA_NAMES.split()
_LAYERS_WITHOUT_ATTENTION_NAMES = """
    plamo2 jamba nemotron_h nemotron_h_moe granitehybrid lfm2 lfm2moe kimi-linear bailingmoe3 kimi-k3 glm5-next"""
_LAYERS_WITHOUT_ATTENTION = _LAYERS_WITHOUT_ATTENTION_NAMES.split()
_ALIBI_NAMES = """
    bloom mpt refact jais"""
_ALIBI = _ALIBI_NAMES.split()
_MROPE_NAMES = """
    qwen2vl paddleocr qwen3vl qwen3vlmoe qwen3tts qwen35 qwen35moe qwen4exp"""
_MROPE = _MROPE_NAMES.split()
_WINDOW_BY_LAYER_NAMES = """
    cohere2moe mimo2 step35 spark2_5 muse-glimmer granite_swa dots3note maple"""
_WINDOW_BY_LAYER = _WINDOW_BY_LAYER_NAMES.split()
_N_LAYER = {
    "llama4": 4,
    "gemma4": 5,
    "gemma3n": 22,
    "deepseek4": 4,
    "nemotron_h": 3,
    "nemotron_h_moe": 3,
    "hrm_text": 6,
}
_SIZES = {  # n_embd, n_head, n_ff
    "gemma4": (128, 2, 192),
    "gemma3n": (64, 1, 96),
    "deepseek4": (512, 8, 1024),
    "step35": (160, 2, 384),
    "laguna": (160, 2, 384),
    **dict.fromkeys(_MLA, (128, 1, 192)),
}


def names(tree: Path) -> list[str]:
    """All architectures of a llama.cpp tree, in its order."""
    source = (tree / "src" / "llama-arch.cpp").read_text()
    table = source.partition("LLM_ARCH_NAMES = {")[2].partition("};")[0]
    return [name for name in re.findall(r'\{ LLM_ARCH_\w+, +"([^"]+)"', table) if name != "(unknown)"]


def keys_of(arch: str) -> dict[str, Value]:
    """The GGUF keys of a tiny model, those of the architecture without its name before them."""
    n_layer = _N_LAYER.get(arch, 2)
    n_embd, n_head, n_ff = _SIZES.get(arch, (256, 2, 384))
    d = n_embd // n_head
    keys: dict[str, Value] = {
        "vocab_size": N_VOCAB,
        "context_length": N_CTX,
        "embedding_length": n_embd,
        "features_length": n_embd,
        "block_count": n_layer,
        "leading_dense_block_count": 1,
        "feed_forward_length": n_ff,
        "use_parallel_residual": False,
        "logit_scale": 1.0,
        "attention.head_count": n_head,
        "attention.head_count_kv": n_head,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.group_norm_epsilon": 1e-5,
        "attention.group_norm_groups": 8,
        "attention.clamp_kqv": 1.0,
        "attention.q_lora_rank": 512,
        "attention.kv_lora_rank": 512,
        "attention.sliding_window": 64,
        "attention.sliding_window_pattern": 2,
    }
    if arch in _MOE:
        keys |= {
            "expert_feed_forward_length": n_ff,
            "expert_shared_feed_forward_length": n_ff // 2,
            "expert_latent_length": n_ff,
            "interleave_moe_layer_step": 2,
            "expert_count": 2,
            "expert_used_count": 2,
            "expert_shared_count": 1,
            "expert_gating_func": 4 if arch == "deepseek4" else 2,
            "expert_group_scale": 1.0,
            "experts_per_group": 1,
        }
    if arch in _ALIBI:
        keys["attention.max_alibi_bias"] = 8.0
    if arch in _MROPE:
        keys["rope.dimension_sections"] = [d // 4] * 4
    if arch in _LAYERS_WITHOUT_ATTENTION:
        heads = [0 if il == 1 else n_head for il in range(n_layer)]
        keys |= {"attention.head_count": n_head if arch == "glm5-next" else heads, "attention.head_count_kv": heads}
    if arch in _WINDOW_BY_LAYER:
        keys["attention.sliding_window_pattern"] = [il % 2 for il in range(n_layer)]
    if arch in _MLA:
        keys |= _mla(arch)
    return keys | _recurrent(arch, n_embd, n_head) | _own(arch, n_layer, n_embd, n_head, n_ff)


def metadata_of(arch: str, changes: Mapping[str, Value | None] = MappingProxyType({})) -> dict[str, Value]:
    """The keys of a tiny model as its file has them, some of them changed or taken out."""
    keys = {key: value for key, value in (keys_of(arch) | dict(changes)).items() if value is not None}
    own = {key if key.startswith("xielu.") else f"{arch}.{key}": value for key, value in keys.items()}
    return {"general.architecture": arch, **own}


def _mla(arch: str) -> dict[str, Value]:
    n_rot = 0 if arch == "glm5-next" else 64
    return {
        "attention.key_length": 512 + n_rot,
        "attention.value_length": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
        "rope.dimension_count": n_rot,
    }


def _recurrent(arch: str, n_embd: int, n_head: int) -> dict[str, Value]:
    qwen = arch in ("qwen3next", "qwen35", "qwen35moe", "qwen4exp")
    return {
        "full_attention_interval": 2,
        "time_mix_extra_dim": 64,
        "time_decay_extra_dim": 128,
        "ssm.inner_size": 256 if qwen else 2 * n_embd,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 128,
        "ssm.time_step_rank": n_head,
        "ssm.group_count": 0 if arch == "plamo2" else 2,
        "kda.head_dim": 128,
        "kda.safe_gate": True,
        "kda.gate_lower_bound": -5.0,
        "wkv.head_size": n_embd // n_head,
        "shortconv.l_cache": 3,
    }


def _own(arch: str, n_layer: int, n_embd: int, n_head: int, n_ff: int) -> dict[str, Value]:
    """Keys that only this architecture has, or has in a way of its own."""
    d = n_embd // n_head
    hyper = {"hyper_connection.count": 4, "hyper_connection.epsilon": 1e-6, "hyper_connection.sinkhorn_iterations": 2}
    indexer = {
        "attention.indexer.head_count": n_head if arch == "minimax-m3" else 64,
        "attention.indexer.key_length": d if arch == "qwen4exp" else 128,
        "attention.indexer.top_k": 131072,
        "attention.indexer.block_size": 4,
        "attention.indexer.local_blocks": 1,
        "attention.indexer.kpool": 4,
        "attention.indexer.kpool_select_tail": True,
    }
    gemma4: dict[str, Value] = {
        "attention.shared_kv_layers": 0,
        "attention.key_length_swa": d,
        "attention.value_length_swa": d,
        "rope.freq_base_swa": 10000.0,
    }
    ranks = ("decay", "iclr", "value_residual_mix", "gate")
    lora: dict[str, Value] = {f"attention.{what}_lora_rank": 32 for what in ranks}
    every_other = [1 - il % 2 for il in range(n_layer)]
    scaled: dict[str, Value] = {"expert_weights_scale": 1.0, "expert_weights_norm": True, "swiglu_clamp_exp": 10.0}
    own: dict[str, dict[str, Value]] = {
        "t5": {"attention.relative_buckets_count": 8},
        "t5encoder": {"attention.relative_buckets_count": 8},
        "deepseek4": {
            "attention.head_count_kv": 1,
            "attention.key_length": d,
            "attention.value_length": d,
            "attention.q_lora_rank": 64,
            "rope.dimension_count": d // 2,
            "attention.output_group_count": 8,
            "attention.output_lora_rank": 32,
            "attention.compress_ratios": [0, 0, 4, 128],
            "attention.compress_rope_freq_base": 160000.0,
            "hash_layer_count": 0,
            **hyper,
            **scaled,
            **indexer,
        },
        "minimax-m3": {"rope.dimension_count": 64, **indexer},
        "deepseek32": indexer,
        "glm-dsa": indexer,
        "dots3note": {
            "attention.kv_lora_rank_swa": 512,
            "attention.key_length_swa": 576,
            "attention.value_length_swa": 512,
            "attention.key_length_mla_swa": 192,
            "attention.value_length_mla_swa": 128,
            "rope.freq_base_swa": 10000.0,
            "attention.indexer.types": every_other,
            **indexer,
        },
        "hy_v4": {
            **hyper,
            **scaled,
            "hyper_connection.magnitude": 2.0,
            "attention.indexer.types": every_other,
            **indexer,
        },
        "qwen4exp": {"hyper_connection.low_rank": 8, "attention.compress_ratios": [4] * n_layer, **hyper, **indexer},
        "glm5-next": {"hyper_connection.low_rank": 8, **hyper, **indexer},
        "gemma4": {
            "embedding_length_per_layer_input": n_embd // 2,
            "attention.sliding_window_pattern": [int(il % 5 != 4) for il in range(n_layer)],
            **gemma4,
        },
        "gemma4-assistant": {
            "leading_dense_block_count": 0,
            "embedding_length_out": 2 * n_embd,
            "nextn_predict_layers": n_layer,
            "attention.sliding_window_pattern": [1 - il for il in range(n_layer)],
            **gemma4,
        },
        "eagle3": {"target_layers": [0, 1, 1], "target_hidden_size": n_embd},
        "dflash": {"target_layers": [0, 1], "attention.sliding_window_pattern": [1, 0]},
        "rwkv7": lora,
        "arwkv7": {"token_shift_count": 1, **lora},
        "rwkv6qwen2": {"token_shift_count": 1},
        "bailingmoe3": {
            "rope.dimension_sections": [8, 12, 12, 0],
            "swiglu_clamp_exp": [0.0, 4.0],
            "swiglu_clamp_shexp": [0.0, 5.0],
        },
        "hrm_text": {"hrm.layers_per_stack": 1, "hrm.h_cycles": 2, "hrm.l_cycles": 2},
        "maple": {"swiglu_clamp_exp": 7.0},
        "nemotron_h": {"feed_forward_length": [0, 0, n_ff]},
        "nemotron_h_moe": {"feed_forward_length": [0, 0, n_ff]},
        "granitehybrid": {"residual_scale": 1.0},
        "minicpm": {"residual_scale": 1.0},
        "kimi-k3": {
            "attn_res.block_size": 12,
            "activation.situ_beta": 4.0,
            "activation.situ_linear_beta": 25.0,
        },
        "minimax-01": {"residual_scale": 3.5565588200778455},
        "apertus": {"xielu.alpha_n": 1.0, "xielu.alpha_p": 1.0, "xielu.beta": 1.0, "xielu.eps": 1e-7},
        "chameleon": {"vocab_size": 10240},
        "qwen3tts": {"vocab_size": 3072},
        "nanbeige": {"num_loops": 2},
        "graniteswitch": {
            "adapters.count": 1,
            "adapters.lora_rank": 8,
            "adapters.token_ids_activate": [5],
            "adapters.token_ids_substitute": [6],
        },
        "wavtokenizer-dec": {
            "posnet.embedding_length": n_embd,
            "posnet.block_count": n_layer,
            "convnext.embedding_length": n_embd,
            "convnext.block_count": n_layer,
        },
    }
    return own.get(arch, {})


def write(path: Path, name: str) -> Path:
    """Write a tiny random model of an architecture or one of `VARIANTS`; if it is `UNMADE`, its keys and one tensor."""
    arch, changes = VARIANTS.get(name, (name, {}))
    keys = metadata_of(arch, changes)
    del keys["general.architecture"]  # the writer has it
    _write(path, arch, keys, {})
    shapes = {"token_embd.weight": (N_VOCAB, 32)} if arch in UNMADE else _wanted_tensors(path)
    absent = _ABSENT.get(arch)
    tensors = {tensor: shape for tensor, shape in shapes.items() if absent is None or absent not in tensor}
    _write(path, arch, keys, {tensor: _values(tensor, shape) for tensor, shape in tensors.items()})
    return path


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The same for the same name and shape, in whatever architecture."""
    values = np.random.default_rng(zlib.crc32(name.encode())).normal(scale=0.1, size=shape).astype(np.float32)
    if "ssm_a" in name:
        return -np.abs(values)  # a state that decays
    if "attn_q_norm" in name:
        return (1 + values) / 4  # attention that is not scaled after it would be on one position alone
    return 1 + values if name.endswith(_FACTORS) else values


def _write(path: Path, arch: str, keys: dict[str, Value], tensors: dict[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tokenizer_model("no_vocab")  # tokens are numbers
    writer.add_token_type_count(2)
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class _GgufParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _wanted_tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape, in NumPy's order, of each tensor that llama.cpp wants of a file's keys."""
    import llama_cpp.llama_cpp as bindings

    lib = bindings._lib
    set_data = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
    lib.gguf_init_from_file.argtypes, lib.gguf_init_from_file.restype = (ctypes.c_char_p, _GgufParams), ctypes.c_void_p
    lib.ggml_get_name.argtypes, lib.ggml_get_name.restype = (ctypes.c_void_p,), ctypes.c_char_p
    make = lib.llama_model_init_from_user
    make.argtypes = (ctypes.c_void_p, set_data, ctypes.c_void_p, bindings.llama_model_params)
    make.restype = ctypes.c_void_p

    shapes: dict[str, tuple[int, ...]] = {}

    @set_data
    def remember(tensor: int, _: object) -> None:
        dims = (ctypes.c_int64 * 4).from_address(tensor + 16)  # struct ggml_tensor: type, buffer, ne
        n_dims = max([i + 1 for i in range(4) if dims[i] > 1], default=1)
        shapes[lib.ggml_get_name(tensor).decode()] = tuple(reversed(dims[:n_dims]))

    metadata = lib.gguf_init_from_file(str(path).encode(), _GgufParams(True, None))
    model = make(metadata, remember, None, bindings.llama_model_default_params())
    assert model, f"llama.cpp makes no model of {path}"
    bindings.llama_model_free(model)
    lib.gguf_free(ctypes.c_void_p(metadata))
    return shapes
