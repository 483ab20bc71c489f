"""Shape of a model, as the planning side needs it: heads, head sizes and the bytes of a row.

Reads GGUF metadata that somebody else has already parsed into a dict (no files, no tensors here). A
*row* is the K and the V vector of one (layer, KV head, position), so its bytes are, for cache types
of blocks,

    row_bytes = n_embd_head_k / block_elems(type_k) * block_bytes(type_k)  +  the same for V

for example 64 and 64 elements: f16 128 + 128 = 256 bytes, q8_0 2 * 34 + 2 * 34 = 136 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pyheadkv.errors import ModelError, UsageError
from pyheadkv.model.keys import Metadata, count, layer_count, per_layer, positive, text
from pyheadkv.model.layers import has_rows, has_window

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
    """One layer with a KV cache of its own, which attends to all positions.

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
    """The layers of a model whose KV cache can be compressed, in the model's order, as `shape_from_metadata` gives it.

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
        without KV heads of their own, or that attend to a sliding window, are left out

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
        return vector_bytes("K", layer.n_embd_head_k, type_k) + vector_bytes("V", layer.n_embd_head_v, type_v)

    def bytes_per_token(self, type_k: str = "f16", type_v: str = "f16") -> int:
        """Bytes that one position takes in a full cache, over all layers and KV heads."""
        return sum(layer.n_head_kv * self.row_bytes(i, type_k, type_v) for i, layer in enumerate(self.layers))


def vector_bytes(which: str, n_elems: int, type_text: str) -> int:
    """Bytes of a K or V vector of so many elements, in whole blocks of a cache type.

    Raises
    ------
    ModelError
        it is no multiple of the type's block
    """
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
    arch = text(metadata, "general.architecture")
    n_block, n_loops = layer_count(metadata, arch)
    n_head = per_layer(metadata, f"{arch}.attention.head_count", n_block)
    n_head_kv = per_layer(metadata, f"{arch}.attention.head_count_kv", n_block, default=n_head)
    windows, rows = has_window(metadata, arch, n_block), has_rows(metadata, arch, n_head_kv)
    head_size = default_head_size(metadata, arch, n_head[0])
    n_embd_head_k = positive(metadata, f"{arch}.attention.key_length", head_size)
    n_embd_head_v = positive(metadata, f"{arch}.attention.value_length", head_size)

    layers: list[LayerShape] = []
    for il in range(n_block):
        if not rows[il] or windows[il]:
            continue
        if n_head[il] % n_head_kv[il]:
            raise ModelError(
                f"{arch}.attention.head_count_kv is {n_head_kv[il]} in layer {il}, "
                f"expected a divisor of its {n_head[il]} query heads"
            )
        layers.append(LayerShape(il, n_head[il], n_head_kv[il], n_embd_head_k, n_embd_head_v))
    # a layer that is passed again has a cache of its own each time
    layers = [replace(layer, il=layer.il + loop * n_block) for loop in range(n_loops) for layer in layers]
    if not layers and any(windows):
        raise ModelError(
            f"{arch} attends to a sliding window in every layer, expected one that attends to all positions"
        )
    if not layers:
        raise ModelError(f"{arch}.attention.head_count_kv is 0 in every layer, expected at least one KV head")
    name = text(metadata, "general.name", "")
    return ModelShape(arch, name, positive(metadata, f"{arch}.context_length"), tuple(layers))


def default_head_size(metadata: Metadata, arch: str, n_head: int) -> int | None:
    """Elements of a head's vectors where the file does not tell; None where that cannot be known."""
    n_embd = count(metadata, f"{arch}.embedding_length", 0)
    return n_embd // n_head if n_embd and n_head else None
