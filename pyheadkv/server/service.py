"""From a request to its answer: a place in the line, the events of the answer, and the end of both."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from pyheadkv.server.answer import Piece, Question
from pyheadkv.server.errors import TOO_MANY, ApiError, as_api_error, error_json
from pyheadkv.server.line import FullError
from pyheadkv.server.replies import Reply
from pyheadkv.server.requests import ChatRequest, CompletionRequest
from pyheadkv.server.worker import Event, Finished, Job, Reading, Worker

CLIENT_GONE = 499  # nginx's; nobody reads it
ALIVE_SECONDS = 10.0  # without a word, after which a stream says that it lives
_MAX_RETRY_AFTER = 600

log = logging.getLogger("pyheadkv.server")


@dataclass(frozen=True)
class Service:
    """Has requests answered.

    Parameters
    ----------
    worker
        lets the model answer
    log_prompts
        write requests and answers to the log
    alive_seconds
        without a word, after which a stream says that it lives
    """

    worker: Worker
    log_prompts: bool = False
    alive_seconds: float = ALIVE_SECONDS

    async def answer(
        self,
        request: Request,
        body: ChatRequest | CompletionRequest,
        ask: Callable[[], Question],
        reply: Reply,
    ) -> Response:
        """The response to a request.

        Parameters
        ----------
        ask
            makes the question, which takes a while where the prompt is long

        Raises
        ------
        HeadKVError
            the request is refused, or its answer failed before a word of it was sent
        """
        self._refuse_if_full()
        job = Job(await run_in_threadpool(ask), _client_of(request))
        try:
            self.worker.line.put(job.client, job)
        except FullError as error:
            raise self._too_many(error) from None
        if body.stream:
            return _JobStream(self._stream(request, body, job, reply), self.worker, job)
        try:
            return await self._whole(request, body, job, reply)
        finally:
            self.worker.leave(job)

    async def _whole(self, request: Request, body: ChatRequest | CompletionRequest, job: Job, reply: Reply) -> Response:
        pieces: list[Piece] = []
        async with aclosing(self._events(request, job)) as events:
            async for event in events:
                if isinstance(event, Piece):
                    pieces.append(event)
                elif isinstance(event, Finished):
                    self._log(body, pieces)
                    return JSONResponse(reply.whole(pieces, event))
        return Response(status_code=CLIENT_GONE)

    async def _stream(
        self, request: Request, body: ChatRequest | CompletionRequest, job: Job, reply: Reply
    ) -> AsyncIterator[str]:
        """Server-sent events; comments tell how far the prompt is read, and that the stream lives."""
        pieces: list[Piece] = []
        try:
            for chunk in reply.begin():
                yield _data(chunk)
            async with aclosing(self._events(request, job)) as events:
                async for event in events:
                    if event is None:
                        yield ": waiting\n\n"
                    elif isinstance(event, Reading):
                        yield f": read {event.n_done} of {event.n_total}\n\n"
                    elif isinstance(event, Piece):
                        pieces.append(event)
                        for chunk in reply.next(event):
                            yield _data(chunk)
                    else:
                        self._log(body, pieces)
                        for chunk in reply.end(event):
                            yield _data(chunk)
                        if body.wants_usage:
                            yield _data(reply.usage(event))
            yield "data: [DONE]\n\n"
        except Exception as error:  # the status is sent already
            yield _data(error_json(as_api_error(error)))

    async def _events(self, request: Request, job: Job) -> AsyncGenerator[Event | None, None]:
        """Events of an answer up to its end, or until the client is gone; None where nothing came for a while."""
        gone = asyncio.create_task(_gone(request))
        coming = asyncio.create_task(job.next())
        try:
            while True:
                await asyncio.wait({gone, coming}, timeout=self.alive_seconds, return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    event = coming.result()
                    yield event
                    if isinstance(event, Finished):
                        return
                    coming = asyncio.create_task(job.next())
                elif gone.done():
                    return
                else:
                    yield None
        finally:
            gone.cancel()
            coming.cancel()

    def _refuse_if_full(self) -> None:
        """Before a long prompt is made into tokens."""
        if self.worker.line.is_full:
            raise self._too_many(FullError("too many requests wait for the model already"))

    def _too_many(self, error: FullError) -> ApiError:
        seconds = math.ceil(self.worker.seconds_each * (len(self.worker.line) + 1))
        retry = {"Retry-After": str(min(max(seconds, 1), _MAX_RETRY_AFTER))}
        return ApiError(str(error), TOO_MANY, code="rate_limit_exceeded", headers=retry)

    def _log(self, body: ChatRequest | CompletionRequest, pieces: list[Piece]) -> None:
        if self.log_prompts:
            asked = body.model_dump(exclude_none=True, by_alias=True)
            log.info(json.dumps({"request": asked, "answer": "".join(piece.text for piece in pieces)}))


class _JobStream(StreamingResponse):
    """A stream of server-sent events; the job ends with it, however it ends, and even if it never begins."""

    def __init__(self, content: AsyncIterator[str], worker: Worker, job: Job) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._worker, self._job = worker, job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._worker.leave(self._job)


async def _gone(request: Request) -> None:
    """Comes back when the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _client_of(request: Request) -> str:
    """Who takes turns with others: a key, or an address."""
    key = request.headers.get("authorization")
    return key or (request.client.host if request.client else "")


def _data(chunk: object) -> str:
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
