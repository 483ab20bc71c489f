"""The HTTP side: routes, errors, and what stands before them."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyheadkv.errors import HeadKVError
from pyheadkv.server.errors import ApiError, ErrorBody, as_api_error, error_json
from pyheadkv.server.guard import Guard, Rules
from pyheadkv.server.metrics import CONTENT_TYPE, Metrics
from pyheadkv.server.model import Model
from pyheadkv.server.replies import ChatReply, TextReply
from pyheadkv.server.requests import ChatRequest, CompletionRequest
from pyheadkv.server.rows import RowMap
from pyheadkv.server.service import Service
from pyheadkv.server.static import add_page
from pyheadkv.server.tools import called_tool
from pyheadkv.server.worker import Worker

_QUIET = ("/health", "/metrics")  # asked for again and again
_REFUSED: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
_CHUNK = {"type": "string", "description": "JSON of a chunk, or [DONE]."}
_STREAM = {"text/event-stream": {"schema": {"type": "object", "properties": {"data": _CHUNK}}}}  # where stream is true
_ANSWER: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, **_STREAM}}, **_REFUSED}

log = logging.getLogger("pyheadkv.server")


def make_app(model: Model, rules: Rules, *, max_waiting: int, log_prompts: bool = False) -> FastAPI:
    """The application; the model answers as long as its lifespan is.

    Parameters
    ----------
    rules
        who may ask, and how much
    max_waiting
        requests that may wait for the model
    log_prompts
        write requests and answers to the log
    """
    metrics = Metrics(lambda: len(worker.line))
    if model.conversations:
        metrics.watch_conversations(model.conversations)
    worker = Worker(model, max_waiting, metrics.count_answer)
    service = Service(worker, log_prompts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        try:
            yield
        finally:
            await run_in_threadpool(worker.stop)

    app = FastAPI(
        title="pyheadkv",
        summary="A model whose key/value cache keeps only the rows that each head needs.",
        version="1",
        lifespan=lifespan,
        docs_url=None,  # pages that fetch scripts from elsewhere
        redoc_url=None,
        dependencies=[Depends(HTTPBearer(auto_error=False))] if rules.keys else [],  # for its description alone
        responses=_REFUSED,
    )
    _add_errors(app)
    _add_information(app, model, metrics)
    _add_rows(app, worker)
    add_page(app)

    @app.post("/v1/chat/completions", responses=_ANSWER)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """The next answer in a conversation."""
        reply = ChatReply(model.name, has_log_probs=body.n_top is not None, tool=called_tool(body))
        return await service.answer(request, body, partial(model.ask_chat, body), reply)

    @app.post("/v1/completions", responses=_ANSWER)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """How a text goes on."""
        reply = TextReply(model.name, has_log_probs=body.n_top is not None)
        return await service.answer(request, body, partial(model.ask_text, body), reply)

    app.add_middleware(Guard, rules=rules)
    app.add_middleware(CORSMiddleware, allow_origins=list(rules.origins), allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(_Counted, metrics=metrics, paths=[str(vars(route).get("path")) for route in app.routes])
    return app


def _add_information(app: FastAPI, model: Model, metrics: Metrics) -> None:
    card = {
        "id": model.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "pyheadkv",
        "context_length": model.n_ctx,
    }

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server is up."""
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE: {}}}})
    async def show_metrics() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """The one model, by its name."""
        if name != model.name:
            raise ApiError(f"there is no model {name}, only {model.name}", 404, code="model_not_found")
        return card


def _add_rows(app: FastAPI, worker: Worker) -> None:
    @app.get("/headkv/rows", response_model=RowMap)
    async def rows() -> Response:
        """Rows that each KV head keeps behind the last answer; status 404 before there is one."""
        if worker.row_map is None:
            raise ApiError("nothing was answered yet", 404)
        return Response(worker.row_map.model_dump_json(), media_type="application/json")


def _add_errors(app: FastAPI) -> None:
    """All errors have the same form."""

    def say(error: ApiError) -> JSONResponse:
        return JSONResponse(error_json(error), error.status, error.headers)

    async def say_any(request: Request, error: Exception) -> JSONResponse:
        return say(as_api_error(error))

    async def say_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return say(ApiError(str(error.detail), error.status_code, headers=error.headers))

    async def say_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        return say(ApiError(f"{param or 'the body'}: {first['msg']}", param=param))

    for kind, handler in (
        (RequestValidationError, say_invalid),
        (HTTPException, say_http),
        (HeadKVError, say_any),
        (Exception, say_any),
    ):
        app.add_exception_handler(kind, handler)


class _Counted:
    """ASGI middleware that counts answers and writes one line of each to the log, without a word of a prompt."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: list[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "another"
        start = time.perf_counter()

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.count_request(path, message["status"])
                if path not in _QUIET:
                    ms = 1000 * (time.perf_counter() - start)
                    log.info("%s %s %d after %.0f ms", scope["method"], path, message["status"], ms)
            await send(message)

        await self._app(scope, receive, count)
