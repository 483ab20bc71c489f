"""A short text that tells whether two GGUF files are the same model, whatever their quantization.

    llama:9f86d081884c7d65:60303ae22b998861:fd61a03af4f77d87
    |     |                |                weights: hash over the norm weights
    |     |                tokenizer: hash over its tokens
    |     shapes: hash over the embedding size and the heads and head sizes of every layer
    architecture

llama.cpp keeps one-dimensional tensors in F32 in every quantization, and its converter writes them as F32 whatever the
type of the file. The norm weights are among them, so their bytes are the same in every file that was converted from the
same weights, and training of any length changes them.

What it proves: the same heads, the same token ids, the same norms; head scores measured on one file fit the other. What
it does not prove: that the matrices are the same. A LoRA merged into the projections, or edited matrices, leave it as
it is. Architectures without norm weights are told apart by the first three
parts only ("none"). Keys named headkv.* are no part, so an exported file has the fingerprint of its original.

Reads the header and the norm weights only: milliseconds for a small model, the tokens of a large vocabulary being the
most of it.

`weights_digest` tells files apart that have the same fingerprint: other quantizations, merged adapters, other keys.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from pathlib import Path

from pyheadkv.errors import ModelError, ProfileError
from pyheadkv.model.gguf_header import TENSOR_F32, Header, TensorInfo, open_header, split_paths
from pyheadkv.model.shape import ModelShape, shape_from_metadata

_PARTS = ("architecture", "attention shape", "tokenizer", "norm weights")
_NORM = "norm.weight"
_NONE = "none"
_SAMPLE_BYTES = 4096
_NOT_COMPUTED_WITH = ("block_count", "context_length", "vocab_size")  # known by the shapes, or words about the model


def fingerprint(path: str | Path) -> str:
    """The fingerprint of a model; of a split one, `path` is its first part.

    Raises
    ------
    ModelError
        the file cannot be read, or a part of a split model is missing
    """
    with _open_parts(path) as parts:
        first = parts[0]
        metadata = first.metadata()
        shape = shape_from_metadata(metadata)
        shape_hash = _shape_hash(shape, metadata.get(f"{shape.architecture}.embedding_length"))
        tokens = first.raw("tokenizer.ggml.tokens")
        return ":".join((shape.architecture, shape_hash, _digest(tokens) if tokens else _NONE, _weights_hash(parts)))


def weights_digest(path: str | Path) -> str:
    """A hash over what a model computes with: its tensors' names, shapes, types and samples, and its own keys.

    Three stretches of each tensor are read, of 4 KiB at most: quantizing, training, and an adapter that was merged
    change them all. Files whose weights differ elsewhere alone have the same hash. Parts of a split model, and
    a copy with other headkv.* keys, have that of the original.

    Raises
    ------
    ModelError
        as `fingerprint`
    """
    digest = hashlib.sha256()
    with _open_parts(path) as parts:
        prefix = f"{shape_from_metadata(parts[0].metadata()).architecture}."
        for key in sorted(parts[0].entries):
            if key.startswith(prefix) and key.removeprefix(prefix) not in _NOT_COMPUTED_WITH:
                digest.update(key.encode() + b"\0" + parts[0].raw(key))
        tensors = [(tensor.name, header, tensor) for header in parts for tensor in header.tensors]
        for name, header, tensor in sorted(tensors, key=lambda item: item[0]):
            digest.update(repr((name, tensor.dims, tensor.ggml_type)).encode())
            for sample in _samples(header, tensor):
                digest.update(sample)
    return digest.hexdigest()[:16]


def check_fingerprint(expected: str, found: str) -> None:
    """Refuse a profile that was measured on another model.

    Parameters
    ----------
    expected
        the profile's
    found
        the model's

    Raises
    ------
    ProfileError
        naming headkv.fingerprint and the parts that differ
    """
    if expected == found:
        return
    theirs, ours = expected.split(":"), found.split(":")
    if len(theirs) != len(_PARTS):
        raise ProfileError(f"headkv.fingerprint is {expected!r}, which is no fingerprint; this model's is {found}")
    differing = [name for name, a, b in zip(_PARTS, theirs, ours, strict=True) if a != b]
    words = "differs" if len(differing) == 1 else "differ"
    raise ProfileError(
        f"headkv.fingerprint is {expected}, this model's is {found}: measured on another model, "
        f"the {' and the '.join(differing)} {words}"
    )


@contextmanager
def _open_parts(path: str | Path) -> Iterator[list[Header]]:
    with ExitStack() as stack:
        first = stack.enter_context(open_header(path))
        yield [first, *(stack.enter_context(open_header(part)) for part in split_paths(first)[1:])]


def _samples(header: Header, tensor: TensorInfo) -> Iterator[bytes]:
    # no type has below 1.5 bits an element, so that 3/16 of as many bytes are all of this tensor
    step = math.prod(tensor.dims) // 16
    for start in (tensor.start, tensor.start + step, tensor.start + 2 * step):
        end = start + min(step, _SAMPLE_BYTES)
        if end > header.size:
            raise _truncated(header, tensor)
        yield header.data[start:end]


def _truncated(header: Header, tensor: TensorInfo) -> ModelError:
    return ModelError(f"{header.path} is truncated: tensor {tensor.name!r} ends behind the end of the file")


def _shape_hash(shape: ModelShape, n_embd: object) -> str:
    # name and trained context are left out: they are words about the model, and converters change them
    return _digest(repr((n_embd, [astuple(layer) for layer in shape.layers])).encode())


def _weights_hash(parts: list[Header]) -> str:
    norms = sorted(
        ((tensor.name, header, tensor) for header in parts for tensor in header.tensors if _is_norm(tensor)),
        key=lambda item: item[0],
    )
    if not norms:
        return _NONE
    digest = hashlib.sha256()
    for name, header, tensor in norms:
        end = tensor.start + 4 * tensor.dims[0]
        if end > header.size:
            raise _truncated(header, tensor)
        digest.update(name.encode() + b"\0" + header.data[tensor.start : end])
    return digest.hexdigest()[:16]


def _is_norm(tensor: TensorInfo) -> bool:
    return tensor.name.endswith(_NORM) and len(tensor.dims) == 1 and tensor.ggml_type == TENSOR_F32


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
