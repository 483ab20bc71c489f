"""Shape of a model, as the planning side needs it: heads, head sizes and the bytes of a row.

Reads GGUF metadata that somebody else has already parsed into a dict (no files, no tensors here). A
*row* is the K and the V vector of one (layer, KV head, position), so its bytes are, for cache types
of blocks,

    row_bytes = n_embd_head_k / block_elems(type_k) * block_bytes(type_k)  +  the same for V

for example 64 and 64 elements: f16 128 + 128 = 256 bytes, q8_0 2 * 34 + 2 * 34 = 136 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

from pyheadkv.errors import ModelError, UsageError

Metadata = Mapping[str, object]

MAX_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS
MAX_CTX = 2**28  # tokens, far above any model; the bindings allocate 4 bytes for each, many times


@dataclass(frozen=True)
class CacheType:
    """Storage type of K or V rows.

    Parameters
    ----------
    name
        as on llama.cpp's command line
    ggml_type
        ``enum ggml_type`` of ggml.h
    block_elems
        elements in a block; a row is whole blocks
    block_bytes
        bytes of a block
    """

    name: str
    ggml_type: int
    block_elems: int
    block_bytes: int


CACHE_TYPES: dict[str, CacheType] = {
    cache_type.name: cache_type
    for cache_type in (
        CacheType("f32", 0, 1, 4),
        CacheType("f16", 1, 1, 2),
        CacheType("bf16", 30, 1, 2),
        CacheType("q8_0", 8, 32, 34),
        CacheType("q4_0", 2, 32, 18),
        CacheType("q4_1", 3, 32, 20),
        CacheType("iq4_nl", 20, 32, 18),
        CacheType("q5_0", 6, 32, 22),
        CacheType("q5_1", 7, 32, 24),
    )
}


def parse_cache_type(text: str) -> CacheType:
    """Look up a cache type by its llama.cpp name, in any case.

    Raises
    ------
    UsageError
        naming the known types
    """
    cache_type = CACHE_TYPES.get(text.strip().lower())
    if cache_type is None:
        raise UsageError(f"unknown cache type {text!r}, known are {', '.join(CACHE_TYPES)}")
    return cache_type


@dataclass(frozen=True)
class LayerShape:
    """One layer with a KV cache of its own.

    Parameters
    ----------
    il
        index in the model, layers without a cache counted too
    n_head, n_head_kv
        query heads and KV heads
    n_embd_head_k, n_embd_head_v
        elements of a head's K and V vector
    """

    il: int
    n_head: int
    n_head_kv: int
    n_embd_head_k: int
    n_embd_head_v: int


@dataclass(frozen=True)
class ModelShape:
    """The layers of a model that have a KV cache, in the model's order, as `shape_from_metadata` gives it.

    >>> from pyheadkv.model.shape import LayerShape
    >>> layer = LayerShape(il=0, n_head=32, n_head_kv=8, n_embd_head_k=128, n_embd_head_v=128)
    >>> shape = ModelShape("llama", "example", 131072, layers=(layer,) * 32)
    >>> shape.n_kv_heads, shape.bytes_per_token("q8_0", "f16")
    (256, 100352)

    Parameters
    ----------
    architecture, name
        ``general.architecture`` and ``general.name`` of the GGUF
    n_ctx_train
        positions that the model was trained for
    layers
        of each layer the index in the model, the heads and the sizes of a K and a V vector, in elements; layers
        without KV heads of their own are left out

    Raises
    ------
    ModelError
        by its methods: an unknown cache type, or a head size that is no multiple of its block
    """

    architecture: str
    name: str
    n_ctx_train: int
    layers: tuple[LayerShape, ...]

    @property
    def n_layer(self) -> int:
        """Number of layers with a cache."""
        return len(self.layers)

    @property
    def n_head_kv(self) -> tuple[int, ...]:
        """KV heads of each layer with a cache."""
        return tuple(layer.n_head_kv for layer in self.layers)

    @property
    def n_kv_heads(self) -> int:
        """KV heads over all layers."""
        return sum(self.n_head_kv)

    def row_bytes(self, il_index: int, type_k: str = "f16", type_v: str = "f16") -> int:
        """Bytes of one row (K and V of one position) of a KV head in ``layers[il_index]``.

        Raises
        ------
        ModelError
            the head size is no multiple of the cache type's block
        """
        layer = self.layers[il_index]
        return _vector_bytes("K", layer.n_embd_head_k, type_k) + _vector_bytes("V", layer.n_embd_head_v, type_v)

    def bytes_per_token(self, type_k: str = "f16", type_v: str = "f16") -> int:
        """Bytes that one position takes in a full cache, over all layers and KV heads."""
        return sum(layer.n_head_kv * self.row_bytes(i, type_k, type_v) for i, layer in enumerate(self.layers))


def _vector_bytes(which: str, n_elems: int, type_text: str) -> int:
    cache_type = parse_cache_type(type_text)
    n_blocks, rest = divmod(n_elems, cache_type.block_elems)
    if rest:
        raise ModelError(
            f"cache type {cache_type.name} stores blocks of {cache_type.block_elems} elements, "
            f"but this model's {which} vectors have {n_elems}"
        )
    return n_blocks * cache_type.block_bytes


def shape_from_metadata(metadata: Metadata) -> ModelShape:
    """Read a model's shape from its GGUF keys, with llama.cpp's defaults for absent ones.

    >>> shape_from_metadata({
    ...     "general.architecture": "llama",
    ...     "llama.block_count": 2,
    ...     "llama.embedding_length": 256,
    ...     "llama.context_length": 4096,
    ...     "llama.attention.head_count": 4,
    ...     "llama.attention.head_count_kv": [2, 1],
    ... }).n_head_kv
    (2, 1)

    Parameters
    ----------
    metadata
        GGUF key -> int, float, bool, str, or list of these

    Raises
    ------
    ModelError
        naming the key, its value and what was expected
    """
    arch = _text(metadata, "general.architecture")
    n_block, n_loops = layer_count(metadata, arch)
    n_nextn = _count(metadata, f"{arch}.nextn_predict_layers", 0)
    # the last layers of a multi-token-prediction model only draft, without a cache in the main
    # context
    n_trunk = n_block - n_nextn if n_nextn < n_block else n_block

    n_head = _per_layer(metadata, f"{arch}.attention.head_count", n_block)
    n_head_kv = _per_layer(metadata, f"{arch}.attention.head_count_kv", n_block, default=n_head)
    default_head_size = _default_head_size(metadata, arch, n_head[0])
    n_embd_head_k = _positive(metadata, f"{arch}.attention.key_length", default_head_size)
    n_embd_head_v = _positive(metadata, f"{arch}.attention.value_length", default_head_size)

    layers: list[LayerShape] = []
    for il in range(n_trunk):
        if n_head_kv[il] == 0:  # a layer without attention
            continue
        if n_head[il] % n_head_kv[il]:
            raise ModelError(
                f"{arch}.attention.head_count_kv is {n_head_kv[il]} in layer {il}, "
                f"expected a divisor of its {n_head[il]} query heads"
            )
        layers.append(LayerShape(il, n_head[il], n_head_kv[il], n_embd_head_k, n_embd_head_v))
    # a layer that is passed again has a cache of its own each time
    layers = [replace(layer, il=layer.il + loop * n_block) for loop in range(n_loops) for layer in layers]
    if not layers:
        raise ModelError(f"{arch}.attention.head_count_kv is 0 in every layer, expected at least one KV head")
    name = _text(metadata, "general.name", "")
    return ModelShape(arch, name, _positive(metadata, f"{arch}.context_length"), tuple(layers))


def _default_head_size(metadata: Metadata, arch: str, n_head: int) -> int | None:
    n_embd = _count(metadata, f"{arch}.embedding_length", 0)
    return n_embd // n_head if n_embd and n_head else None


def _text(metadata: Metadata, key: str, default: str | None = None) -> str:
    value = metadata.get(key, default)
    if value is None:
        raise ModelError(f"{key} is missing, expected a string")
    if not isinstance(value, str) or (value == "" and default is None):
        raise ModelError(f"{key} is {_short(value)}, expected a string")
    return value


def _count(metadata: Metadata, key: str, default: int | None = None) -> int:
    value = metadata.get(key, default)
    if value is None:
        raise ModelError(f"{key} is missing, expected a whole number")
    if not _is_count(value):
        raise ModelError(f"{key} is {_short(value)}, expected a whole number of at least 0")
    return value


def _positive(metadata: Metadata, key: str, default: int | None = None) -> int:
    value = _count(metadata, key, default)
    if value == 0:
        raise ModelError(f"{key} is 0, expected at least 1")
    return value


def _per_layer(metadata: Metadata, key: str, n_block: int, default: list[int] | None = None) -> list[int]:
    value = metadata.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, (list, tuple)):
        return [_count(metadata, key)] * n_block
    if len(value) != n_block:
        raise ModelError(f"{key} has {len(value)} values, expected {n_block}, one for each layer")
    for il, item in enumerate(value):
        if not _is_count(item):
            raise ModelError(f"{key} is {_short(item)} in layer {il}, expected a whole number of at least 0")
    return list(value)


def _is_count(value: object) -> TypeGuard[int]:
    # bool is an int in Python, but not in GGUF
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


_ALIBI = "uses ALiBi, a bias by cache position"
_MROPE = "uses M-RoPE, several positions for one token"

ENCODER = "is an encoder and keeps no KV cache"

# Architectures by what llama.cpp's llama_model::create_memory() and rope types make of them, at the
# pinned commit. tests/e2e/test_architectures.py compares with what the native side says of each.
_NOT_GENERATING_GROUPS = {
    ENCODER: """
        bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert
        gemma-embedding t5encoder llama-embed""",
    "reads images for another model": "clip",
    "makes sound of tokens": "wavtokenizer-dec",
    "is an encoder-decoder with a position bias in its attention": "t5",
    "is a diffusion model and keeps no KV cache": "dream llada llada-moe rnd1",
    "is a draft model that works on another model's context": "eagle3 dflash gemma4-assistant",
    "ends the process when this llama.cpp makes its attention": "plm",
    "is a name in llama.cpp and no more": "gptj",
}
_UNSUPPORTED_GROUPS = {
    **_NOT_GENERATING_GROUPS,
    "is recurrent and has no KV cache": """
        mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7""",
    "mixes attention with recurrent layers": """
        jamba falcon-h1 plamo2 granitehybrid lfm2 lfm2moe nemotron_h nemotron_h_moe qwen3next
        kimi-linear bailingmoe3 kimi-k3 glm5-next qwen35 qwen35moe qwen4exp deepseek4 minimax-01""",
    "uses a sparse-attention index beside its KV cache": """
        minimax-m3 glm-dsa deepseek32 dots3note hy_v4""",
    "keeps in its cache which adapter each token chose": "graniteswitch",
    "cannot use flash attention in llama.cpp": "grok",
    _ALIBI: "bloom mpt refact",
    _MROPE: "qwen2vl paddleocr qwen3vl qwen3vlmoe qwen3tts",
}
_NOT_GENERATING, _UNSUPPORTED = (
    {arch: reason for reason, archs in groups.items() for arch in archs.split()}
    for groups in (_NOT_GENERATING_GROUPS, _UNSUPPORTED_GROUPS)
)

# Only these obey attention.sliding_window; others carry the key and llama.cpp ignores it (llama,
# qwen2, phi3, ...).
_SLIDING_NAMES = """
    afmoe cohere2 cohere2moe exaone-moe exaone4 gemma2 gemma3 gemma3n gemma4 granite_swa laguna
    llama4 maple mellum mimo2 muse-glimmer olmo2 gpt-oss plamo3 smallthinker spark2_5 step35"""
_SLIDING = frozenset(_SLIDING_NAMES.split())
_SLIDING_DEFAULT = {"exaone4": 4096, "gemma2": 4096, "llama4": 8192}  # these slide even without the key
_MROPE_BY_SECTIONS = frozenset({"glm4", "glm4moe", "hunyuan_vl"})
_ALIBI_BY_LAYERS = {"baichuan": 40}  # only the 13B


def not_generating_reason(metadata: Metadata) -> str | None:
    """Say why no text can be generated with a model at all; None if nothing speaks against it."""
    arch = metadata.get("general.architecture")
    if arch == "llama4" and metadata.get("llama4.attention.sliding_window") == 0:
        return "without a window ends the process in this llama.cpp"
    return _NOT_GENERATING.get(arch) if isinstance(arch, str) else None


def unsupported_reason(metadata: Metadata) -> str | None:
    """Say why a model's cache cannot be compressed, as far as its GGUF keys tell.

    For early messages and ``inspect``; the native attach is the final judge. None if nothing speaks
    against it.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or not arch:
        return "general.architecture is missing"
    reason = not_generating_reason(metadata) or _UNSUPPORTED.get(arch) or _reason_from_keys(metadata, arch)
    return f"architecture {arch} {reason}" if reason else None


def layer_count(metadata: Metadata, arch: str) -> tuple[int, int]:
    """Layers of a model, and how often a token passes them.

    Raises
    ------
    ModelError
        none, or more than llama.cpp has room for, which ends the process
    """
    n_loops = _positive(metadata, f"{arch}.num_loops", 1) if arch == "nanbeige" else 1
    n_block = _positive(metadata, f"{arch}.block_count")
    if n_block * n_loops > MAX_LAYERS:
        passed = f" and {arch}.num_loops {n_loops}" if n_loops > 1 else ""
        raise ModelError(f"{arch}.block_count is {n_block}{passed}, expected at most {MAX_LAYERS} layers")
    return n_block, n_loops


def supported_shape(metadata: Metadata, path: str | Path) -> ModelShape:
    """`shape_from_metadata` of a model whose cache can be compressed, as far as its GGUF keys tell.

    Raises
    ------
    ModelError
        naming the file and what speaks against it
    """
    reason = unsupported_reason(metadata)
    if reason:
        raise ModelError(f"{path} cannot be compressed: {reason}")
    return shape_from_metadata(metadata)


def _reason_from_keys(metadata: Metadata, arch: str) -> str | None:
    n_block = metadata.get(f"{arch}.block_count")
    n_swa = metadata.get(f"{arch}.attention.sliding_window", _SLIDING_DEFAULT.get(arch, 0))
    if arch in _SLIDING and n_swa and (arch != "exaone4" or n_block == 64):
        return f"uses sliding-window attention (window of {_short(n_swa)} tokens)"
    # kv_lora_rank alone does not tell: minicpm3 and plm have it, and expand K and V before they are
    # cached
    if metadata.get(f"{arch}.attention.key_length_mla"):
        rank = metadata.get(f"{arch}.attention.kv_lora_rank", "unknown")
        return f"uses latent attention (MLA, rank {_short(rank)}), which has no rows per KV head"
    if metadata.get(f"{arch}.attention.max_alibi_bias") or n_block == _ALIBI_BY_LAYERS.get(arch, -1):
        return _ALIBI
    sections = metadata.get(f"{arch}.rope.dimension_sections")
    if arch in _MROPE_BY_SECTIONS and isinstance(sections, (list, tuple)) and sections and all(sections[:2]):
        return _MROPE
    if metadata.get(f"{arch}.attention.causal") is False:
        return "attends to later tokens too"
    return None
