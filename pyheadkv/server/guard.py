"""Who may ask, and how much they may send: all that is decided before a request is read by the application.

A page of another origin may not ask, unless it is allowed: what a browser shows would use the model behind the user's
back. A page counts as our own where its origin is the address that the browser asked, and that is a number or
localhost: a name may have been pointed here by whoever made the page.

A body is read whole before anything is done with it, within a limit of bytes and of time, so that a slow client holds
nothing but its own connection. Where memory is limited, so are the bodies of all requests together, each until it is
answered.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyheadkv.errors import UsageError
from pyheadkv.files.plain_text import read_text
from pyheadkv.server.errors import FORBIDDEN, TIMEOUT, TOO_LARGE, UNAUTHORIZED, UNAVAILABLE, ApiError, error_json
from pyheadkv.server.memory import RETRY
from pyheadkv.server.static import PAGE

OPEN_PATHS = (*PAGE, "/health")  # tell nothing that is worth a key
BODY_SECONDS = 60.0


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Keys of a file, one a line; lines that begin with # are none.

    Raises
    ------
    UsageError
        it cannot be read, or has no key, or one that cannot stand in a header
    """
    lines = (line.strip() for line in read_text(path, name=f"--api-key-file {path}").splitlines())
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UsageError(f"--api-key-file {path} has no key")
    for number, key in enumerate(keys, 1):
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(f"--api-key-file {path}: key {number} has a character that cannot stand in a header")
    return tuple(key.encode() for key in keys)


@dataclass(frozen=True)
class Rules:
    """Who may ask, and how much they may send.

    Parameters
    ----------
    keys
        one of which a request must bear; none: anybody may ask
    origins
        of other pages that may ask; "*" is all
    max_body
        bytes
    max_bodies
        bytes of all that are here at a time; None: no limit
    body_seconds
        for a body to come in
    """

    keys: tuple[bytes, ...]
    origins: Sequence[str]
    max_body: int
    max_bodies: int | None = None
    body_seconds: float = BODY_SECONDS


class Guard:
    """ASGI middleware that applies the rules."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules
        self._bodies = _Bodies(rules.max_bodies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through with its body, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._bodies.place() as take:
            await self._let_through(scope, receive, send, take)

    async def _let_through(self, scope: Scope, receive: Receive, send: Send, take: Callable[[int], None]) -> None:
        headers = Headers(scope=scope)
        try:
            self._check_origin(headers)
            if scope["path"] not in OPEN_PATHS and scope["method"] != "OPTIONS":
                self._check_key(headers)
            body = await self._read(headers, receive, take)
        except ApiError as error:
            # what was not read would be taken for the next request
            response = JSONResponse(error_json(error), error.status, {**error.headers, "Connection": "close"})
            await response(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _again(body, receive), send)

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or "*" in self._rules.origins or origin in self._rules.origins:
            return
        if not _is_own(origin, headers.get("host", "")):
            raise ApiError(f"pages of {origin[:100]!r} may not ask here (serve --allow-origin)", FORBIDDEN)

    def _check_key(self, headers: Headers) -> None:
        if not self._rules.keys:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip().encode() if scheme.lower() == "bearer" else b""
        # all are compared, each in a time that says nothing about where it differs
        if not sum([hmac.compare_digest(key, known) for known in self._rules.keys]):
            raise ApiError(
                "a key is needed: Authorization: Bearer KEY",
                UNAUTHORIZED,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _read(self, headers: Headers, receive: Receive, take: Callable[[int], None]) -> bytes | None:
        """The body, whose bytes are taken one part after the other; None where the client went away."""
        limit = self._rules.max_body
        too_large = ApiError(f"the body is larger than {limit} bytes", TOO_LARGE)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > limit:
            raise too_large
        parts, n_bytes = [], 0
        with anyio.move_on_after(self._rules.body_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                parts.append(message.get("body", b""))
                n_bytes += len(parts[-1])
                if n_bytes > limit:
                    raise too_large
                take(len(parts[-1]))
                if not message.get("more_body"):
                    return b"".join(parts)
        raise ApiError(f"the body did not come within {self._rules.body_seconds:g} seconds", TIMEOUT)


class _Bodies:
    """Bytes of all bodies that are here."""

    def __init__(self, n_max: int | None) -> None:
        self._n_max, self._n_bytes = n_max, 0

    @contextmanager
    def place(self) -> Iterator[Callable[[int], None]]:
        """For one body: what is called with its bytes as they come, which are gone behind the block."""
        n_own = 0

        def take(n_bytes: int) -> None:
            nonlocal n_own
            if self._n_max is not None and self._n_bytes + n_bytes > self._n_max:
                raise ApiError(
                    f"requests of {self._n_bytes} bytes are here already, and memory is limited to {self._n_max}: "
                    "try again",
                    UNAVAILABLE,
                    headers=RETRY,
                )
            n_own += n_bytes
            self._n_bytes += n_bytes

        try:
            yield take
        finally:
            self._n_bytes -= n_own


def _is_own(origin: str, host: str) -> bool:
    """Whether an origin is the address that was asked, and no name that could point anywhere."""
    try:
        page = urlsplit(origin)
        name = page.hostname or ""
        if page.netloc.lower() != host.lower():
            return False
        if name != "localhost":
            ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _again(body: bytes, receive: Receive) -> Receive:
    """The body once more, then whatever comes after it."""
    is_given = False

    async def give() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give
