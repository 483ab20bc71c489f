"""What a model's chat template writes around a user's message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyheadkv.errors import ModelError

if TYPE_CHECKING:
    import llama_cpp


def chat_frame(llama: llama_cpp.Llama) -> tuple[str, str]:
    """What stands before the user's message, and between it and the answer; without a template "" and a new line.

    Raises
    ------
    ModelError
        the template cannot be used
    """
    template = llama.metadata.get("tokenizer.chat_template")
    if template is None:
        return "", "\n"
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    eos, bos = (
        llama._model.token_get_text(token) if token >= 0 else "" for token in (llama.token_eos(), llama.token_bos())
    )
    mark = "(message)"
    try:
        formatter = Jinja2ChatFormatter(template=template, eos_token=eos, bos_token=bos)
        before, _, between = formatter(messages=[{"role": "user", "content": mark}]).prompt.partition(mark)
    except Exception as error:  # a template is a program, and may raise anything
        raise ModelError(f"the chat template cannot be used: {' '.join(str(error).split())}") from error
    return before, between
