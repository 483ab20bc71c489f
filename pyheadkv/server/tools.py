"""Answers that have to be JSON: a response format, or the call of a tool."""

from __future__ import annotations

import json
from typing import Any

from pyheadkv.errors import UsageError
from pyheadkv.server.requests import ChatRequest, NamedTool, ObjectFormat, SchemaFormat


def called_tool(request: ChatRequest) -> str | None:
    """The one tool that the answer calls; "" where the answer names it, None where it need not call any.

    Raises
    ------
    UsageError
        it is none of the request's tools, or there are none
    """
    names = [tool.function.name for tool in request.tools or ()]
    if isinstance(request.tool_choice, NamedTool):
        name = request.tool_choice.function.name
        if name not in names:
            raise UsageError(f"tool_choice names {name}, tools are {', '.join(names) or 'none'}")
        return name
    if request.tool_choice != "required":
        return None
    if not names:
        raise UsageError("tool_choice is required, and there are no tools")
    return names[0] if len(names) == 1 else ""


def answer_schema(request: ChatRequest) -> dict[str, Any] | None:
    """JSON schema of the answer; None where it may be any text."""
    name = called_tool(request)
    if name is not None:
        own = {tool.function.name: tool.function.parameters or {"type": "object"} for tool in request.tools or ()}
        return own[name] if name else {"anyOf": [_call_schema(*item) for item in own.items()]}
    if isinstance(request.response_format, SchemaFormat):
        return request.response_format.json_schema.json_schema or {}
    if isinstance(request.response_format, ObjectFormat):
        return request.response_format.json_schema or {}
    return None


def split_call(text: str) -> tuple[str, str]:
    """Name and arguments of an answer that names the tool; one that was cut short has neither whole."""
    try:
        call = json.loads(text)
    except ValueError:
        return "", text
    return call["name"], json.dumps(call["arguments"])


def template_tools(request: ChatRequest) -> list[dict[str, Any]] | None:
    """Tools as chat templates take them; None where there are none, or none may be called."""
    if not request.tools or request.tool_choice == "none":
        return None
    return [tool.model_dump(exclude_none=True) for tool in request.tools]


def _call_schema(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": parameters},
        "required": ["name", "arguments"],
    }
