"""Load a model so that its cache can be compressed: flash attention on, one sequence, few cells at first."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyheadkv.errors import ModelError
from pyheadkv.native import context_cells, log_lines
from pyheadkv.shape import parse_cache_type
from pyheadkv.template import deferred_compilation

if TYPE_CHECKING:
    import llama_cpp

FIRST_CELLS = 256  # cells of a new context


def load(
    model_path: str | Path,
    *,
    n_ctx: int = 0,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    type_k: str = "f16",
    type_v: str = "f16",
    n_batch: int = 512,
    n_cells: int = FIRST_CELLS,
    verbose: bool = False,
    **llama_options: Any,
) -> llama_cpp.Llama:
    """Load a model with flash attention and a cache that starts small and grows on demand.

    Parameters
    ----------
    n_ctx
        positions; 0 is the context the model was trained for
    n_threads
        for prompt and generation; default: all CPUs that this process may use
    n_gpu_layers
        -1 is all of them
    type_k, type_v
        cache types by llama.cpp's names
    n_cells
        cells that the cache starts with; 0 is n_ctx, as upstream has it
    llama_options
        handed on to llama_cpp.Llama

    Raises
    ------
    ModelError
        the file cannot be loaded; gives llama.cpp's reason
    LibraryError
        the native library is missing
    """
    n_threads = n_threads or _n_cpus()
    options: dict[str, Any] = {
        "n_ctx": n_ctx,
        "n_threads": n_threads,
        "n_threads_batch": n_threads,
        "n_gpu_layers": n_gpu_layers,
        "n_batch": n_batch,
        "type_k": parse_cache_type(type_k).ggml_type,
        "type_v": parse_cache_type(type_v).ggml_type,
        "flash_attn": True,
        "verbose": verbose,
        **llama_options,
    }
    lines: list[str] = []
    with context_cells(n_cells), nullcontext() if verbose else log_lines(lines):
        import llama_cpp

        try:
            with deferred_compilation():
                return llama_cpp.Llama(str(model_path), **options)
        except (ValueError, RuntimeError) as error:
            reason = lines[0] if lines else " ".join(str(error).split())
            raise ModelError(f"{model_path} cannot be loaded: {reason}") from error


@contextmanager
def opened(model_path: str | Path, **options: Any) -> Iterator[llama_cpp.Llama]:
    """`load` for a measurement: the errors of llama.cpp come as exceptions only, and the model is freed afterwards."""
    llama = load(model_path, **options)
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
    try:
        yield llama
    finally:
        with log_lines([]):  # upstream says that the buffers grew
            llama.close()


def _n_cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
