"""Prompts as a model's chat template writes them, in which only the template can write special tokens.

A user, a file or a tool may say `<|im_end|>`; that is text, and no end of a turn. So the messages are moved out of the
way before a template is rendered (`lift`), special tokens are looked for in what the template itself wrote (`special`),
and all else is tokenized as text (`chat`).
"""

from pyheadkv.engine.template.chat import (
    ChatPrompt,
    ChatTemplate,
    check_template,
    plain_prompt,
    set_template,
    template_source,
)
from pyheadkv.engine.template.handler import deferred_compilation, protect_chat_completion

__all__ = [
    "ChatPrompt",
    "ChatTemplate",
    "check_template",
    "deferred_compilation",
    "plain_prompt",
    "protect_chat_completion",
    "set_template",
    "template_source",
]
