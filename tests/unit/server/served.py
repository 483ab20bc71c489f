"""A server without a model: everything but the numbers is real."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from pyheadkv.chat.sampling import Sampling
from pyheadkv.chat.session import HeadKV
from pyheadkv.errors import UsageError
from pyheadkv.server import answer, log_probs, model
from pyheadkv.server.app import make_app
from pyheadkv.server.guard import Rules
from pyheadkv.server.model import Model
from tests.unit.fake_llama import FakeLlama, without_library
from tests.unit.fake_vocabulary import CONTROL, FIRST_CHAR, FakeVocabulary

TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"
)
ROLES = ("system", "user", "assistant", "tool", "tools")
END = 99
MAX_BODY = 20_000
WORDS = ("The ", "ferry ", "leaves ", "at ", "nine.")
VOCABULARY_METHODS = ("tokenize", "token_get_text", "token_get_attr", "add_bos_token", "vocab_type")


class ServedLlama(FakeLlama):
    """Answers every prompt with the same words, one a token; each waits for `gate`."""

    chat_handler = None
    chat_format = "chat_template.default"

    def __init__(self, words: Sequence[str] = WORDS, n_ctx: int = 2000) -> None:
        super().__init__(n_ctx)
        self.words = list(words)
        self.vocabulary = FakeVocabulary({f"<{role}>": CONTROL for role in ROLES})
        for name in ("tokenize", "token_bos", "token_eos"):
            setattr(self, name, getattr(self.vocabulary, name))
        own = {name: getattr(self.vocabulary, name) for name in VOCABULARY_METHODS}
        self._model = SimpleNamespace(n_ctx_train=lambda: n_ctx, n_params=lambda: 1000, **own)
        self.metadata["tokenizer.chat_template"] = TEMPLATE
        self.prompts: list[str] = []
        self.settings: list[dict[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.n_said = 0
        self.fail: Exception | None = None

    def n_vocab(self) -> int:
        return 100_000

    def set_seed(self, seed: int) -> None:
        self.seed = seed

    def generate(self, tokens: list[int], **settings: Any) -> Iterator[int]:
        known = [token for token in tokens if token >= FIRST_CHAR or token < len(ROLES)]
        self.prompts.append("".join(map(self.vocabulary.token_get_text, known)))
        self.settings.append(settings)
        for i, _ in enumerate(super().generate(tokens)):
            if not self.gate.wait(30):
                raise TimeoutError
            if self.fail:
                error, self.fail = self.fail, None
                raise error
            self.n_said += 1
            yield i if i < len(self.words) else END

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self.words[token].encode("utf-8", "surrogateescape") for token in tokens)


class Served:
    """The server: a client of it, its Llama, and what was asked of grammars."""

    def __init__(self, llama: ServedLlama, model: Model, schemas: list[object], follower: Any) -> None:
        self.llama, self.model, self.schemas, self.follower = llama, model, schemas, follower

    def app(self, *, max_waiting: int = 8, log_prompts: bool = False, **rules: Any) -> FastAPI:
        """The application."""
        return make_app(
            self.model,
            Rules(rules.pop("keys", ()), rules.pop("origins", ()), MAX_BODY, **rules),
            max_waiting=max_waiting,
            log_prompts=log_prompts,
        )

    @contextmanager
    def up(self, **options: Any) -> Iterator[TestClient]:
        """Its client, while it runs."""
        with TestClient(self.app(**options), raise_server_exceptions=False) as client:
            try:
                yield client
            finally:
                self.llama.gate.set()


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of an application that listens on a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def make_served(monkeypatch: pytest.MonkeyPatch, llama: ServedLlama | None = None, **options: Any) -> Served:
    """A server on a Llama that has no model; options of its `Model`."""
    llama = llama or ServedLlama()
    schemas: list[object] = []
    without_library(monkeypatch)

    follower = SimpleNamespace(is_stuck=False)

    def grammar(_: object, schema: dict[str, Any]) -> SimpleNamespace:
        if "refused" in schema:
            raise UsageError("the JSON schema cannot be followed: refused")
        schemas.append(schema)
        return SimpleNamespace(following=lambda _: nullcontext(follower))

    monkeypatch.setattr(answer, "is_end", lambda _, token: token == END)
    monkeypatch.setattr(answer, "logits", lambda _: np.arange(200, dtype=np.float32) / 10)
    monkeypatch.setattr(log_probs, "piece", lambda _, token: f"t{token}".encode())
    monkeypatch.setattr(model, "schema_grammar", grammar)
    stream: Any = llama
    served = Model(HeadKV(stream, policy="snapkv"), "fake", Sampling(temp=0.5), **options)
    return Served(llama, served, schemas, follower)
