"""What goes wrong, as OpenAI's API says it: a status, and an object with one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from pyheadkv.errors import HeadKVError, NativeError, one_line

BAD_REQUEST, UNAUTHORIZED, FORBIDDEN, TIMEOUT, TOO_LARGE, TOO_MANY = 400, 401, 403, 408, 413, 429
SERVER_ERROR, UNAVAILABLE = 500, 503
_MAX_CHARS = 1000
_TYPES = {UNAUTHORIZED: "authentication_error", FORBIDDEN: "permission_error", TOO_MANY: "rate_limit_error"}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


class ApiError(HeadKVError):
    """A request that is refused.

    Parameters
    ----------
    status
        of HTTP
    code
        OpenAI's name for this kind of error
    param
        field of the request
    headers
        of the answer
    """

    def __init__(
        self,
        message: str,
        status: int = BAD_REQUEST,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})


def as_api_error(error: Exception) -> ApiError:
    """Any error as one that clients can be told."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HeadKVError):
        is_ours = isinstance(error, NativeError)
        return ApiError(str(error), SERVER_ERROR if is_ours else BAD_REQUEST)
    return ApiError("an error inside the server; its log has more", SERVER_ERROR)


def error_json(error: ApiError) -> dict[str, Any]:
    """The body."""
    kind = _TYPES.get(error.status, "server_error" if error.status >= SERVER_ERROR else "invalid_request_error")
    param = error.param and _sayable(error.param)
    return {"error": {"message": _sayable(one_line(error)), "type": kind, "param": param, "code": error.code}}


def _sayable(words: str) -> str:
    """Words that may be a request's own: it can have half a character, and megabytes in the place of a name."""
    words = words.encode("utf-8", "replace").decode()
    return words if len(words) <= _MAX_CHARS else f"{words[: _MAX_CHARS - 3]}..."
