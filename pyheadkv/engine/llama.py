"""A llama_cpp.Llama as it is inside: the only file that touches private attributes of llama-cpp-python."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pyheadkv.errors import ModelError, UsageError

if TYPE_CHECKING:
    import llama_cpp
    import numpy as np
    import numpy.typing as npt
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

CLOSED = "this Llama is closed, its model is freed: load it again"
NO_VOCABULARY = 0  # LLAMA_VOCAB_TYPE_NONE


# ---- the context ----


def context_of(llama: llama_cpp.Llama) -> Any:
    """The llama_context, as ctypes has it; UsageError where it is freed."""
    context = llama._ctx.ctx
    if ctypes.cast(context, ctypes.c_void_p).value is None:
        raise UsageError(CLOSED)
    return context


def context_length(llama: llama_cpp.Llama) -> int:
    """Tokens that a context has room for: as many as were asked for, where ``llama.n_ctx()`` is rounded up."""
    return len(llama.input_ids)


def tokens_of(llama: llama_cpp.Llama) -> list[int]:
    """The tokens that were read, from position 0 on."""
    tokens: list[int] = llama.input_ids[: llama.n_tokens].tolist()
    return tokens


def cut(llama: llama_cpp.Llama, n_tokens: int) -> bool:
    """Keep the first tokens of a cache, at least those that have hot rows; there are no logits until one is read.

    At once: the next eval would cut there too, but what observes asks for cells before that.

    Returns
    -------
    false: the memory of some layers does not go back so far (see `Checkpoints`), or there are hot rows; nothing changed
    """
    if not llama._ctx.kv_cache_seq_rm(-1, n_tokens, -1):
        return False
    llama.n_tokens = n_tokens
    llama._requires_eval = True  # else a prompt of just these tokens is answered with logits of others
    return True


def empty(llama: llama_cpp.Llama) -> None:
    """Forget all tokens."""
    llama.reset()  # type: ignore[no-untyped-call]
    cut(llama, 0)


def count_read(llama: llama_cpp.Llama, tokens: Sequence[int], *, has_logits: bool = True) -> None:
    """Tokens were read after those that are there, and not by ``llama.eval``; their logits are where it leaves them.

    Parameters
    ----------
    has_logits
        otherwise those in memory are of others, and none are sampled from before a token is read
    """
    n_past, n_tokens = llama.n_tokens, len(tokens)
    llama.input_ids[n_past : n_past + n_tokens] = tokens
    llama.n_tokens += n_tokens
    llama._requires_eval = not has_logits


def is_on_gpu(llama: llama_cpp.Llama) -> bool:
    """Whether layers were asked to lie on a GPU that the library can use."""
    from llama_cpp import llama_supports_gpu_offload

    return llama.model_params.n_gpu_layers != 0 and bool(llama_supports_gpu_offload())


def wants_all_logits(llama: llama_cpp.Llama) -> bool:
    """Whether the logits of every token are kept."""
    return bool(llama._logits_all)


def logits(llama: llama_cpp.Llama) -> npt.NDArray[np.float32]:
    """Of the token after the last one, f32 [n_vocab], when they are computed; good until the next token is read."""
    from numpy.ctypeslib import as_array  # `pyheadkv --help` imports this module, and has no use for NumPy

    return as_array(llama._ctx.get_logits_ith(-1), shape=(llama.n_vocab(),))


# ---- the model ----


def n_ctx_train(llama: llama_cpp.Llama) -> int:
    """Positions that the model was trained for."""
    return int(llama._model.n_ctx_train())


def n_params(llama: llama_cpp.Llama) -> int:
    """Numbers in the model's weights."""
    return int(llama._model.n_params())


# ---- the vocabulary ----


def has_vocabulary(llama: llama_cpp.Llama) -> bool:
    """Whether tokens stand for text."""
    return bool(llama._model.vocab_type() != NO_VOCABULARY)


def vocabulary_of(llama: llama_cpp.Llama) -> Any:
    """The model as a tokenizer of llama.cpp's; a Llama may have another, which finds special tokens in any text.

    Raises
    ------
    ModelError
        it has no vocabulary, on which llama.cpp would end the process
    """
    if not has_vocabulary(llama):
        raise ModelError("this model has no vocabulary: it takes tokens, and no text")
    return llama._model


def piece(llama: llama_cpp.Llama, token: int) -> bytes:
    """The bytes that a token stands for; those of control tokens are their names."""
    text: bytes = llama._model.detokenize([token], special=True)
    return text


def token_text(llama: llama_cpp.Llama, token: int) -> str:
    """The vocabulary's own word for a token; "" for none (-1)."""
    text: str = llama._model.token_get_text(token) if token >= 0 else ""
    return text


def adds_bos(llama: llama_cpp.Llama) -> bool:
    """Whether the vocabulary wants a token at the beginning of each text."""
    return bool(llama._model.add_bos_token())


def is_end(llama: llama_cpp.Llama, token: int) -> bool:
    """Whether an answer ends with this token."""
    import llama_cpp

    return bool(llama_cpp.llama_vocab_is_eog(llama._model.vocab, token))


# ---- the bindings ----


class Refusing:
    """Stands where llama.cpp would end the process: whatever it is asked for, it raises its error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error.with_traceback(None)


def replace_freed(llama: llama_cpp.Llama) -> None:
    """Have a closed Llama refuse what would ask for its model, its context or its tokenizer, which are freed."""
    inside: Any = llama
    inside._model = inside._ctx = inside.tokenizer_ = Refusing(UsageError(CLOSED))


def loaded_library() -> str | None:
    """File of the libllama that llama_cpp has loaded; None when llama_cpp is not imported."""
    library = getattr(sys.modules.get("llama_cpp.llama_cpp"), "_lib", None)
    return None if library is None else str(library._name)


def jinja_template(formatter: Jinja2ChatFormatter) -> Any:
    """The template that llama-cpp-python's formatter has compiled."""
    return formatter._environment


@contextmanager
def log_lines(lines: list[str], *, with_warnings: bool = True) -> Iterator[None]:
    """Append llama.cpp's errors, and its warnings, to lines and print none; the usual log comes back afterwards."""
    from llama_cpp import _logger
    from llama_cpp import llama_cpp as bindings

    warn, error = 3, 4  # enum ggml_log_level
    kept = (warn, error) if with_warnings else (error,)

    @bindings.llama_log_callback  # type: ignore[untyped-decorator]
    def collect(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        if level in kept and text.strip():
            lines.append(" ".join(text.decode("utf-8", errors="replace").split()))

    bindings.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield
    finally:
        bindings.llama_log_set(_logger.llama_log_callback, ctypes.c_void_p(0))
