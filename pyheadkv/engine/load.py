"""Load a model so that its cache can be compressed: flash attention on, one sequence, few cells at first."""

from __future__ import annotations

import logging
import operator
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyheadkv.engine.llama import Refusing, log_lines
from pyheadkv.engine.native import context_cells
from pyheadkv.engine.template import check_template, deferred_compilation, set_template
from pyheadkv.errors import ModelError, UsageError, one_line
from pyheadkv.model.file import check_generates, has_vocabulary, no_vocabulary, read_gguf_metadata
from pyheadkv.model.shape import MAX_CTX, parse_cache_type

if TYPE_CHECKING:
    import llama_cpp

FIRST_CELLS = 256  # cells of a new context
_MAX_BATCH = 2**14  # tokens; the bindings allocate n_ctx numbers for each
_MAX_GPU_LAYERS = 2**31 - 1

# llama.cpp's errors that say that something failed, and not why
_NO_REASON = re.compile(r"failed to load model$")


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
    on_notice: Callable[[str], None] | None = None,
    chat_template: str | None = None,
    **llama_options: Any,
) -> llama_cpp.Llama:
    """Load a model with flash attention and a cache that starts small and grows on demand.

    >>> llama = load("model.gguf", n_ctx=8192, n_gpu_layers=-1)

    Parameters
    ----------
    model_path
        GGUF file; of a split model, the first part
    n_ctx
        positions; 0 is the context the model was trained for
    n_threads
        for prompt and generation, at most as many as the machine has CPUs; by default, and for 0, all that this
        process may use
    n_gpu_layers
        -1 is all of them
    n_batch
        tokens of a prompt that are evaluated at once
    type_k, type_v
        cache types by llama.cpp's names
    n_batch
        tokens of a prompt that are computed at once
    n_cells
        cells that the cache starts with; 0 is n_ctx, as upstream has it
    on_notice
        called with one line when something the user should know happened
    verbose
        show llama.cpp's own log
    chat_template
        instead of the model's own: a Jinja source, or a name of llama.cpp's ("chatml", "llama3"; all are in
        `pyheadkv.engine.native.builtin_chat_names`). The model's own is compiled when it is used: a broken one loads
    llama_options
        handed on to llama_cpp.Llama

    Raises
    ------
    ModelError
        the file cannot be loaded, or no text can be generated with it; gives llama.cpp's reason; or
        `chat_template` is no template
    UsageError
        a number is out of range
    LibraryError
        the native library is missing
    """
    if chat_template is not None:
        check_template(chat_template)
    notify = on_notice or (lambda line: None)
    n_threads = usable_threads("n_threads", n_threads, notify)
    options: dict[str, Any] = {
        "n_ctx": _whole("n_ctx", n_ctx, 0, MAX_CTX),
        "n_threads": n_threads,
        "n_threads_batch": n_threads,
        "n_gpu_layers": _whole("n_gpu_layers", n_gpu_layers, -1, _MAX_GPU_LAYERS),
        "n_batch": _whole("n_batch", n_batch, 1, _MAX_BATCH),
        "type_k": parse_cache_type(type_k).ggml_type,
        "type_v": parse_cache_type(type_v).ggml_type,
        "flash_attn": True,
        "swa_full": False,  # layers with a sliding window keep their window
        "verbose": verbose,
        **llama_options,
    }
    options["n_threads_batch"] = usable_threads("n_threads_batch", options["n_threads_batch"], notify)
    n_cells = _whole("n_cells", n_cells, 0, MAX_CTX)
    metadata = read_gguf_metadata(model_path)
    check_generates(metadata, model_path, is_embedding=bool(llama_options.get("embedding")))
    if not has_vocabulary(metadata):
        options.setdefault("tokenizer", Refusing(ModelError(no_vocabulary(model_path))))
    lines: list[str] = []
    with context_cells(n_cells), nullcontext() if verbose else log_lines(lines, with_warnings=False):
        import llama_cpp

        try:
            with deferred_compilation():
                llama = llama_cpp.Llama(str(model_path), **options)
        except Exception as error:  # the bindings raise what llama.cpp, the chat template or the memory give them
            raise ModelError(f"{model_path} cannot be loaded: {_reason(lines, error)}") from error
    if chat_template is not None:
        set_template(llama, chat_template)
    return llama


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


def usable_threads(name: str, value: int | None, notify: Callable[[str], None]) -> int:
    """Threads to use: more than the machine has CPUs make it slower, and very many end the process.

    Parameters
    ----------
    name
        of the argument, for messages
    value
        None or 0 is all CPUs that this process may use
    notify
        called with one line when these are too many

    Raises
    ------
    UsageError
        it is no whole number, or below 0
    """
    n_threads = 0 if value is None else _whole(name, value, 0, None)
    if n_threads == 0:
        return _n_cpus()
    n_most = os.cpu_count() or 1
    if n_threads > n_most:
        notify(f"{name} {n_threads} is more than this machine has CPUs: {n_most} are used")
    return min(n_threads, n_most)


def _whole(name: str, value: Any, least: int, most: int | None) -> int:
    """A whole number in [least, most]; NumPy's too, and no bool."""
    expected = f"from {least} to {most}" if most is not None else f"of at least {least}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least or (most is not None and number > most):
        raise UsageError(f"{name} is {value!r}, expected a whole number {expected}")
    return number


def _reason(lines: list[str], error: Exception) -> str:
    """The last error of llama.cpp's log that says why, else the exception's own words."""
    reasons = [line for line in lines if not _NO_REASON.search(line)]
    if reasons:
        return reasons[-1]
    return "out of memory" if isinstance(error, MemoryError) else one_line(error)


def _n_cpus() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
