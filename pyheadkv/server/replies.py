"""Answers as OpenAI's API has them, whole or in chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from pyheadkv.server.answer import Piece
from pyheadkv.server.log_probs import TokenLogProb, TokenLogProbs
from pyheadkv.server.tools import split_call
from pyheadkv.server.worker import Finished

Json = dict[str, Any]


class ChatReply:
    """The answer in a conversation.

    Parameters
    ----------
    model
        its name
    has_log_probs
        whether they are asked for
    tool
        name of the tool that is called; "" where the answer names it, None where it is text
    """

    kind, prefix = "chat.completion", "chatcmpl"

    def __init__(self, model: str, *, has_log_probs: bool, tool: str | None = None) -> None:
        self._head = _head(self.prefix, model)
        self._has_log_probs, self._tool = has_log_probs, tool
        self._call_id = f"call_{uuid.uuid4().hex}"
        self._held = ""  # of an answer that names its tool: both are known at its end

    def whole(self, pieces: Sequence[Piece], finished: Finished) -> Json:
        """All of it."""
        text = "".join(piece.text for piece in pieces)
        message: Json = {"role": "assistant", "content": text, "refusal": None}
        if self._tool is not None:
            message |= {"content": None, "tool_calls": [self._call(text)]}
        choice = {"index": 0, "message": message, "finish_reason": self._reason(finished)}
        choice["logprobs"] = self._log_probs([item for piece in pieces for item in piece.log_probs])
        return self._head | {
            "object": self.kind,
            "choices": [choice],
            "usage": usage(finished),
            "headkv": cache(finished),
        }

    def begin(self) -> Iterator[Json]:
        """Chunks before the first piece."""
        delta: Json = {"role": "assistant", "content": "", "refusal": None}
        if self._tool is not None:
            delta["content"] = None
        if self._tool:
            delta["tool_calls"] = [self._call("") | {"index": 0}]
        yield self._chunk(delta)

    def next(self, piece: Piece) -> Iterator[Json]:
        """Chunks of a piece."""
        if self._tool == "":
            self._held += piece.text
        elif self._tool is not None:
            yield self._chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece.text}}]}, piece)
        else:
            yield self._chunk({"content": piece.text}, piece)

    def end(self, finished: Finished) -> Iterator[Json]:
        """Chunks behind the last piece."""
        if self._tool == "":
            yield self._chunk({"tool_calls": [self._call(self._held) | {"index": 0}]})
        yield self._chunk({}, reason=self._reason(finished)) | {"headkv": cache(finished)}

    def usage(self, finished: Finished) -> Json:
        """The chunk of a stream that has counts alone."""
        return self._head | {"object": f"{self.kind}.chunk", "choices": [], "usage": usage(finished)}

    def _chunk(self, delta: Json, piece: Piece | None = None, reason: str | None = None) -> Json:
        log_probs = self._log_probs(piece.log_probs) if piece else None
        choice = {"index": 0, "delta": delta, "logprobs": log_probs, "finish_reason": reason}
        return self._head | {"object": f"{self.kind}.chunk", "choices": [choice]}

    def _call(self, text: str) -> Json:
        name, arguments = (self._tool, text) if self._tool else split_call(text)
        return {"id": self._call_id, "type": "function", "function": {"name": name, "arguments": arguments}}

    def _reason(self, finished: Finished) -> str | None:
        return "tool_calls" if self._tool is not None and finished.reason == "stop" else finished.reason

    def _log_probs(self, said: Sequence[TokenLogProbs]) -> Json | None:
        if not self._has_log_probs:
            return None
        content = [_log_prob(it.said) | {"top_logprobs": [_log_prob(one) for one in it.top]} for it in said]
        return {"content": content, "refusal": None}


class TextReply:
    """A text that was continued; parameters as of `ChatReply`."""

    kind, prefix = "text_completion", "cmpl"

    def __init__(self, model: str, *, has_log_probs: bool) -> None:
        self._head = _head(self.prefix, model) | {"object": self.kind}
        self._has_log_probs = has_log_probs
        self._n_chars = 0  # said before

    def whole(self, pieces: Sequence[Piece], finished: Finished) -> Json:
        """All of it."""
        said = [item for piece in pieces for item in piece.log_probs]
        choice = self._choice("".join(piece.text for piece in pieces), said, finished.reason)
        return self._head | {"choices": [choice], "usage": usage(finished), "headkv": cache(finished)}

    def begin(self) -> Iterator[Json]:
        """Nothing comes before the first piece."""
        return iter(())

    def next(self, piece: Piece) -> Iterator[Json]:
        """Chunks of a piece."""
        yield self._head | {"choices": [self._choice(piece.text, piece.log_probs)]}

    def end(self, finished: Finished) -> Iterator[Json]:
        """Chunks behind the last piece."""
        yield self._head | {"choices": [self._choice("", (), finished.reason)], "headkv": cache(finished)}

    def usage(self, finished: Finished) -> Json:
        """As of `ChatReply`."""
        return self._head | {"choices": [], "usage": usage(finished)}

    def _choice(self, text: str, said: Sequence[TokenLogProbs], reason: str | None = None) -> Json:
        log_probs = self._log_probs(said) if self._has_log_probs else None
        return {"index": 0, "text": text, "logprobs": log_probs, "finish_reason": reason}

    def _log_probs(self, said: Sequence[TokenLogProbs]) -> Json:
        offsets = []
        for item in said:
            offsets.append(self._n_chars)
            self._n_chars += len(item.said.text)
        return {
            "tokens": [item.said.text for item in said],
            "token_logprobs": [item.said.value for item in said],
            "top_logprobs": [{one.text: one.value for one in item.top} for item in said],
            "text_offset": offsets,
        }


Reply = ChatReply | TextReply


def usage(finished: Finished) -> Json:
    """Tokens as OpenAI counts them."""
    stats = finished.stats
    return {
        "prompt_tokens": stats.n_prompt,
        "completion_tokens": finished.n_generated,
        "total_tokens": stats.n_prompt + finished.n_generated,
        "prompt_tokens_details": {"cached_tokens": max(0, stats.n_prompt - stats.n_read)},
    }


def cache(finished: Finished) -> Json:
    """The cache behind an answer, and the times of this turn; no part of OpenAI's API."""
    stats = finished.stats
    return {
        "answer": finished.number,
        "bytes_measured": stats.bytes_measured,
        "bytes_full": stats.bytes_full,
        "bytes_peak": stats.native.bytes_peak,
        "n_read": stats.n_read,
        "ms_prefill": round(stats.ms_prefill, 3),
        "ms_select": round(stats.ms_select, 3),
        "ms_decode": round(stats.ms_decode, 3),
    }


def _head(prefix: str, model: str) -> Json:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


def _log_prob(one: TokenLogProb) -> Json:
    return {"token": one.text, "logprob": one.value, "bytes": list(one.data)}
