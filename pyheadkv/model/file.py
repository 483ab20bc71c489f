"""Kinds of GGUF files, told before llama.cpp loads them: on some, llama.cpp ends the process instead of saying so."""

from __future__ import annotations

from pathlib import Path

from pyheadkv.errors import ModelError
from pyheadkv.model.gguf_header import open_header
from pyheadkv.model.key_limits import check_limits
from pyheadkv.model.keys import Metadata
from pyheadkv.model.support import ENCODER, not_generating_reason

_KINDS = {  # values of general.type beside "model"
    "adapter": "an adapter (LoRA) for a model",
    "imatrix": "an importance matrix",
    "mmproj": "a projector, the part of a model that reads images or sound",
}
_NO_VOCABULARY = ("none", "no_vocab")


def read_gguf_metadata(path: str | Path) -> dict[str, object]:
    """Read the keys of a model's GGUF file: numbers, booleans, strings, and arrays of numbers as lists.

    Arrays of strings (vocabularies) are left out. Tensors are not read.

    Raises
    ------
    ModelError
        missing, no GGUF, damaged, or no model; names the file and what is wrong
    """
    with open_header(path) as header:
        metadata, n_tensors = header.metadata(), len(header.tensors)
    check_is_model(metadata, n_tensors, path)
    return metadata


def check_is_model(metadata: Metadata, n_tensors: int, path: str | Path) -> None:
    """Refuse a GGUF file that is something else than a model.

    Raises
    ------
    ModelError
        naming the file and what it is
    """
    kind = "mmproj" if metadata.get("general.architecture") == "clip" else metadata.get("general.type", "model")
    if kind != "model":
        raise ModelError(f"{path} is {_KINDS.get(str(kind), f'a file of type {str(kind)[:40]!r}')}, expected a model")
    if n_tensors == 0 and "split.count" not in metadata:  # the first of several parts may hold keys only
        what = "a vocabulary" if "tokenizer.ggml.model" in metadata else "a file"
        raise ModelError(f"{path} is {what} without weights, expected a model")


def check_generates(metadata: Metadata, path: str | Path, *, is_embedding: bool = False) -> None:
    """Refuse a model that no text can be generated with, or that llama.cpp has no room for.

    Parameters
    ----------
    is_embedding
        embeddings are wanted, for which an encoder will do

    Raises
    ------
    ModelError
        naming the file and what it is, or the key, its value and what was expected
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str):
        return  # llama.cpp says what is missing
    reason = not_generating_reason(metadata)
    if reason == ENCODER and not is_embedding:
        reason += " (embedding=True loads it for embeddings)"
    elif reason == ENCODER:
        reason = None
    if reason:
        raise ModelError(f"{path} cannot generate text: architecture {arch} {reason}")
    check_limits(metadata, arch)


def has_vocabulary(metadata: Metadata) -> bool:
    """Whether text can be made into tokens; llama.cpp ends the process where it is tried without."""
    return metadata.get("tokenizer.ggml.model") not in _NO_VOCABULARY


def check_has_vocabulary(metadata: Metadata, path: str | Path) -> None:
    """Refuse a model that text cannot be given to.

    Raises
    ------
    ModelError
        naming the file
    """
    if not has_vocabulary(metadata):
        raise ModelError(no_vocabulary(path))


def no_vocabulary(path: str | Path) -> str:
    """The refusal of text by a model without a vocabulary."""
    return f"{path} has no vocabulary: it takes tokens, and no text"
