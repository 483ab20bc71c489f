"""What clients send, as OpenAI's API has it; three settings of llama.cpp's besides, which it lacks.

A field that would change the answer and cannot be followed is refused; a few that only OpenAI's service has a use for
are taken and not used, since clients send them unasked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from pyheadkv.chat.sampling import SETTINGS

MAX_STOP_WORDS = 16
MAX_TOP = 20  # of OpenAI's
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
StopWord = Annotated[str, Field(min_length=1, max_length=256)]
Penalty = Annotated[float | None, Field(ge=-2, le=2)]


def _setting(name: str, words: str = "") -> Any:
    setting = SETTINGS[name]
    return Field(default=None, ge=setting.low, le=setting.high, description=words or setting.words)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


# ---- messages ----


class TextPart(_Body):
    """A part of a message; this server takes text alone."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class FunctionCall(_Body):
    """What the model calls."""

    name: str
    arguments: str = Field(description="JSON, as the model wrote it.")


class ToolCall(_Body):
    """A call that the model made in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class SystemMessage(_Body):
    """Says how to answer."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(_Body):
    """Asks."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(_Body):
    """An earlier answer; of what this server sends, all may be sent back."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    function_call: None = None
    audio: None = None
    annotations: list[JsonValue] | None = None


class ToolMessage(_Body):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them: content as one text, arguments of calls as objects."""
    return [_template_message(message) for message in messages]


def _template_message(message: Message) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    found: dict[str, Any] = {"role": role, "content": _text_of(message.content)}
    for key in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, key, None)) is not None:
            found[key] = value
    if isinstance(message, AssistantMessage) and message.tool_calls:
        found["tool_calls"] = [_template_call(call) for call in message.tool_calls]
    return found


def _template_call(call: ToolCall) -> dict[str, Any]:
    arguments: Any = call.function.arguments
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, Mapping):
        arguments = parsed
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _text_of(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content)


# ---- tools and formats ----


class Function(_Body):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, JsonValue] | None = Field(None, description="JSON schema of its arguments.")
    strict: bool | None = None


class Tool(_Body):
    """A tool."""

    type: Literal["function"]
    function: Function


class FunctionName(_Body):
    """Names a function."""

    name: Name


class NamedTool(_Body):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: FunctionName


class TextFormat(_Body):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(_Body):
    """A JSON object, of a schema if one is given."""

    type: Literal["json_object"]
    json_schema: dict[str, JsonValue] | None = Field(None, alias="schema")


class NamedSchema(_Body):
    """A JSON schema with a name."""

    name: Name
    description: str | None = None
    json_schema: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None


class SchemaFormat(_Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class StreamOptions(_Body):
    """What a stream says besides the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


# ---- requests ----


class _Request(_Body):
    """Fields that both kinds of requests have."""

    model: str | None = Field(None, description="Any name: there is one model.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=0, le=2**31 - 1, description="0 reads the prompt alone.")
    temperature: float | None = _setting("temp")
    top_p: float | None = _setting("top-p")
    top_k: int | None = _setting("top-k")
    min_p: float | None = _setting("min-p")
    repeat_penalty: float | None = _setting("repeat-penalty")
    seed: int | None = _setting("seed")
    frequency_penalty: Penalty = None
    presence_penalty: Penalty = None
    stop: StopWord | Annotated[list[StopWord], Field(max_length=MAX_STOP_WORDS)] | None = None
    n: Literal[1] | None = None
    user: str | None = Field(None, description="Taken and not used.")

    @model_validator(mode="before")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        """JSON can spell half a character, which no vocabulary has."""
        try:
            if isinstance(value, dict):  # else it is refused for that
                json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("it has half a character (a surrogate without its other half)") from None
        return value

    def settings(self) -> dict[str, object]:
        """The settings of `pyheadkv.chat.sampling` that the request has, by their names there."""
        names = {
            "temp": self.temperature,
            "top-p": self.top_p,
            "top-k": self.top_k,
            "min-p": self.min_p,
            "repeat-penalty": self.repeat_penalty,
            "seed": self.seed,
            "n-predict": self.max_tokens,
        }
        return {name: value for name, value in names.items() if value is not None}

    def stop_words(self) -> tuple[str, ...]:
        """Words that end the answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its counts."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(_Request):
    """A conversation, and what is wanted of the next answer."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0, le=2**31 - 1, description="Goes before max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="With auto the model's own words come as they are, as its template has taught it to call."
    )
    response_format: ResponseFormat | None = None
    metadata: dict[str, JsonValue] | None = Field(None, description="Taken and not used.")
    modalities: list[Literal["text"]] | None = Field(None, description="Taken and not used.")
    parallel_tool_calls: bool | None = Field(None, description="Taken and not used: one call at most is made.")
    prompt_cache_key: str | None = Field(None, description="Taken and not used.")
    safety_identifier: str | None = Field(None, description="Taken and not used.")
    service_tier: str | None = Field(None, description="Taken and not used.")
    store: bool | None = Field(None, description="Taken and not used: nothing is stored.")

    def texts(self) -> list[str]:
        """What the messages say."""
        return [_text_of(message.content) for message in self.messages]

    def settings(self) -> dict[str, object]:
        """As of all requests."""
        limit = self.max_completion_tokens
        return super().settings() | ({} if limit is None else {"n-predict": limit})

    @property
    def n_top(self) -> int | None:
        """Likeliest tokens that are wanted beside each; None: no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Request):
    """A text that is to be continued as it is."""

    prompt: (
        str
        | Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=1)]
    ) = Field(description="One text, in which special tokens are read, or its tokens.")
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP)
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    @property
    def n_top(self) -> int | None:
        """As of `ChatRequest`."""
        return self.logprobs
