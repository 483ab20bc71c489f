"""Well-known shapes, as models with random weights: sizes for which there is no small model.

`llama-8b` with 4 layers costs in each layer what Llama 3.1 8B costs in each of its 32. The vocabulary is small, so the
last matrix, which does not depend on the cache, costs next to nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gguf

from pyheadkv.bench.random_model import RandomModel, write_model
from pyheadkv.errors import BenchError, UsageError
from pyheadkv.files.cache_folder import cache_folder
from pyheadkv.files.targets import check_target

N_VOCAB = 1024
N_CTX = 131072
WEIGHT_TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in ("q4_0", "q8_0", "f16")}


def _shape(
    n_layer: int, n_embd: int, n_ff: int, n_head: int, n_head_kv: int, head_size: int, has_bias: bool = False
) -> RandomModel:
    return RandomModel(
        (n_head,) * n_layer, (n_head_kv,) * n_layer, head_size, n_embd, n_ff, N_VOCAB, N_CTX, has_bias=has_bias
    )


SHAPES = {
    "smollm2-1.7b": _shape(24, 2048, 8192, 32, 32, 64),
    "llama-1b": _shape(16, 2048, 8192, 32, 8, 64),  # Llama 3.2
    "llama-3b": _shape(28, 3072, 8192, 24, 8, 128),  # Llama 3.2
    "llama-8b": _shape(32, 4096, 14336, 32, 8, 128),  # Llama 3.1; Mistral 7B's too
    "llama-70b": _shape(80, 8192, 28672, 64, 8, 128),  # Llama 3.1
    "qwen2-1.5b": _shape(28, 1536, 8960, 12, 2, 128, has_bias=True),  # Qwen2 and Qwen2.5
    "qwen2-7b": _shape(28, 3584, 18944, 28, 4, 128, has_bias=True),  # Qwen2 and Qwen2.5
}


@dataclass(frozen=True)
class ShapeModel:
    """A shape with some of its layers, and the type of its matrices."""

    name: str
    n_layer: int | None = None
    weights: str = "q4_0"

    def model(self) -> RandomModel:
        """The model to be written.

        Raises
        ------
        UsageError
            an unknown shape or type, or a number of layers that it does not have
        """
        whole = SHAPES.get(self.name)
        if whole is None:
            raise UsageError(f"unknown shape {self.name!r}, known are {', '.join(SHAPES)}")
        if self.weights not in WEIGHT_TYPES:
            raise UsageError(f"unknown type of weights {self.weights!r}, known are {', '.join(WEIGHT_TYPES)}")
        n_layer = whole.n_layer if self.n_layer is None else self.n_layer
        if not 1 <= n_layer <= whole.n_layer:
            raise UsageError(f"--layers is {n_layer}, {self.name} has 1 to {whole.n_layer}")
        return replace(whole, n_head=whole.n_head[:n_layer], n_head_kv=whole.n_head_kv[:n_layer])


def shape_file(shape: ShapeModel, on_notice: Callable[[str], None] | None = None) -> Path:
    """The GGUF file of a shape in the user's cache, written the first time.

    Parameters
    ----------
    on_notice
        called with one line before the file is written

    Raises
    ------
    UsageError
        as of `ShapeModel.model`
    BenchError
        the file cannot be written
    """
    model = shape.model()
    with cache_folder(BenchError) as folder:
        path = folder / f"random-{shape.name}-{model.n_layer}-{shape.weights}.gguf"
        if path.is_file():
            return path
        check_target(path, BenchError)
        if on_notice:
            on_notice(f"writing random weights to {path}")
        scratch = path.with_suffix(f".{os.getpid()}.part")
        words = f"random {shape.name}, {model.n_layer} layers"
        try:
            write_model(scratch, model, WEIGHT_TYPES[shape.weights], name=words)
            scratch.replace(path)  # at once: another process never sees half a file
        finally:
            scratch.unlink(missing_ok=True)
    return path
