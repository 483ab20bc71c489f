"""Chat templates that write messages as one text: Jinja sources, and those that llama.cpp has under a name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from jinja2 import TemplateSyntaxError, nodes

from pyheadkv.engine.llama import jinja_template
from pyheadkv.engine.native import builtin_chat, builtin_chat_names
from pyheadkv.errors import ModelError, UsageError, one_line

MAX_STEPS = 100_000  # numbers that all range() of one rendering may give, as Jinja's sandbox bounds each of them
MAX_CHARS = 1 << 26
_LOOKS = {"split", "rsplit", "startswith", "endswith", "replace", "partition", "rpartition", "find", "rfind", "count"}
_MESSAGE = "\ue000"  # no template writes it
_WAY_ON = "another can be given: chat --chat-template, load(chat_template=)"

Messages = Sequence[Mapping[str, Any]]


class Renderer(Protocol):
    """A chat template.

    `literals` are texts that it writes by itself, `looked_for` those that it looks for in messages.
    """

    literals: frozenset[str]
    looked_for: frozenset[str]

    def __call__(self, messages: Messages, variables: Mapping[str, Any]) -> str:
        """The messages as one text, up to where the model answers."""


class _RefusedError(Exception):
    """Raised by a template itself."""


class JinjaRenderer:
    """A template in Jinja, with the functions that llama-cpp-python and Transformers give it.

    Parameters
    ----------
    source
        its text
    bos, eos
        texts of the tokens that begin and end a conversation

    Raises
    ------
    ModelError
        Jinja cannot read it
    """

    def __init__(self, source: str, bos: str, eos: str) -> None:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        try:
            self._template = jinja_template(Jinja2ChatFormatter(source, eos_token=eos, bos_token=bos))
            tree = self._template.environment.parse(source)
        except TemplateSyntaxError as error:
            raise ModelError(f"the chat template, line {error.lineno}: {error.message}; {_WAY_ON}") from error
        except Exception as error:  # too deep, for example
            raise _unusable(error) from error
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self.literals = frozenset([*(node.data for node in tree.find_all(nodes.TemplateData)), *_constants(tree)])
        self.looked_for = frozenset(_looked_for(tree))

    def __call__(self, messages: Messages, variables: Mapping[str, Any]) -> str:
        """Render.

        Raises
        ------
        UsageError
            the template refuses the messages, in its own words
        ModelError
            it fails, or takes too much
        """
        given: dict[str, Any] = {
            "messages": messages,
            "add_generation_prompt": True,
            "tools": None,
            "tool_choice": None,
            "functions": None,
            "function_call": None,
            **self._tokens,
            **variables,
            "raise_exception": _refuse,
            "strftime_now": datetime.now().strftime,
            "range": _CountedRange(),
        }
        try:
            text: str = self._template.render(given)
        except _RefusedError as error:
            raise UsageError(f"the chat template refuses the messages: {one_line(error)}") from error
        except Exception as error:  # a template is a program, and may raise anything
            raise _unusable(error) from error
        if len(text) > MAX_CHARS:
            raise ModelError(f"the chat template writes {len(text)} characters, the limit is {MAX_CHARS}; {_WAY_ON}")
        return text


class BuiltinRenderer:
    """A template that llama.cpp has under a name: llama2, chatml, gemma and so on.

    Parameters
    ----------
    name
        one of `builtin_chat_names`
    """

    looked_for: frozenset[str] = frozenset()

    def __init__(self, name: str) -> None:
        self._name = name
        sample = [(role, _MESSAGE) for role in ("system", "user", "assistant", "user")]
        self.literals = frozenset(builtin_chat(name, sample).split(_MESSAGE))

    def __call__(self, messages: Messages, variables: Mapping[str, Any]) -> str:
        """Render.

        Raises
        ------
        UsageError
            a message has no text, or there are tools: such a template has no place for them
        """
        if variables.get("tools") or variables.get("functions"):
            raise UsageError(f"chat template {self._name} has no place for tools")
        return builtin_chat(self._name, [(str(message["role"]), _text_of(message)) for message in messages])


def make_renderer(source: str, bos: str, eos: str) -> Renderer:
    """A template by its Jinja source, or by the name that llama.cpp has for it.

    Raises
    ------
    ModelError
        it is empty, or Jinja cannot read it
    """
    if not source.strip():
        raise ModelError(f"the chat template is empty; {_WAY_ON}")
    return BuiltinRenderer(source) if source in builtin_chat_names() else JinjaRenderer(source, bos, eos)


class _CountedRange:
    """range() of one rendering, whose loops inside loops would not end otherwise."""

    def __init__(self) -> None:
        self._n_left = MAX_STEPS

    def __call__(self, *bounds: int) -> range:
        steps = range(*bounds)
        self._n_left -= len(steps)
        if self._n_left < 0:
            raise OverflowError(f"its loops take more than {MAX_STEPS} steps")
        return steps


def _refuse(message: str) -> None:
    raise _RefusedError(message)


def _unusable(error: Exception) -> ModelError:
    return ModelError(f"the chat template cannot be used: {one_line(error)}; {_WAY_ON}")


def _text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    parts = [part.get("text") for part in content] if isinstance(content, list) else [content]
    if not all(isinstance(part, str) for part in parts):
        raise UsageError(f"a message of the {message['role']} has no text")
    return "\n".join(map(str, parts))


def _constants(tree: nodes.Node) -> Iterable[str]:
    return (node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str))


def _looked_for(tree: nodes.Node) -> Iterable[str]:
    """Strings of `"..." in x`, `x.split("...")` and the like."""
    for compare in tree.find_all(nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in compare.ops):
            yield from _constants(nodes.Output([compare.expr]))
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _LOOKS:
            yield from _constants(nodes.Output(list(call.args)))
    for name in tree.find_all(nodes.Filter):
        if name.name in _LOOKS:
            yield from _constants(nodes.Output(list(name.args)))
