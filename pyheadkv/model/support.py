"""Which models can be compressed, as far as their GGUF keys tell, and why not the others.

For early messages and ``inspect``; the native side is the final judge (native/cache/support.cpp).
"""

from __future__ import annotations

from pathlib import Path

from pyheadkv.errors import ModelError
from pyheadkv.model.keys import Metadata, layer_count, short, trunk_count
from pyheadkv.model.layers import has_window, n_window
from pyheadkv.model.shape import ModelShape, shape_from_metadata

_ONLY_WINDOWS = "attends to a sliding window in each layer that has attention"
_ALIBI = "uses ALiBi, a bias by cache position"

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
    "uses a sparse-attention index beside its KV cache": """
        minimax-m3 glm-dsa deepseek32 dots3note hy_v4 glm5-next qwen4exp""",
    "compresses its KV cache itself": "deepseek4",
    "keeps in its cache which adapter each token chose": "graniteswitch",
    "cannot use flash attention in llama.cpp": "grok",
    _ALIBI: "bloom mpt refact",
}
_NOT_GENERATING, _UNSUPPORTED = (
    {arch: reason for reason, archs in groups.items() for arch in archs.split()}
    for groups in (_NOT_GENERATING_GROUPS, _UNSUPPORTED_GROUPS)
)

_ALIBI_BY_LAYERS = {"baichuan": 40}  # only the 13B


def not_generating_reason(metadata: Metadata) -> str | None:
    """Say why no text can be generated with a model at all; None if nothing speaks against it."""
    arch = metadata.get("general.architecture")
    if arch == "llama4" and metadata.get("llama4.attention.sliding_window") == 0:
        return "without a window ends the process in this llama.cpp"
    if isinstance(arch, str) and _has_layers(metadata, arch, with_window=False, without_window=True):
        return "names a sliding window and no layer that has it, on which this llama.cpp ends the process"
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
    if arch == "lfm2" and metadata.get(f"{arch}.attention.sliding_window"):
        return _ONLY_WINDOWS
    if _has_layers(metadata, arch, with_window=True, without_window=False):
        return _ONLY_WINDOWS
    # kv_lora_rank alone does not tell: minicpm3 and plm have it, and expand K and V before they are
    # cached
    if metadata.get(f"{arch}.attention.key_length_mla"):
        rank = metadata.get(f"{arch}.attention.kv_lora_rank", "unknown")
        return f"uses latent attention (MLA, rank {short(rank)}), which has no rows per KV head"
    if metadata.get(f"{arch}.attention.max_alibi_bias") or n_block == _ALIBI_BY_LAYERS.get(arch, -1):
        return _ALIBI
    if metadata.get(f"{arch}.attention.causal") is False:
        return "attends to later tokens too"
    return None


def _has_layers(metadata: Metadata, arch: str, *, with_window: bool, without_window: bool) -> bool:
    """Whether a model that names a sliding window has such layers and no others; False where keys are missing."""
    try:
        if not n_window(metadata, arch):
            return False
        windows = has_window(metadata, arch, layer_count(metadata, arch)[0])[: trunk_count(metadata, arch)]
    except ModelError:
        return False
    return (any(windows), not all(windows)) == (with_window, without_window)
