"""Requests made from the server's own description, right ones and wrong ones: no 500, and answers as it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.unit.server.served import listening, make_served

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
OPERATIONS = {
    "POST /v1/chat/completions": 15,  # requests of each kind
    "POST /v1/completions": 15,
    "GET /v1/models": 2,
    "GET /v1/models/{name}": 10,
    "GET /health": 2,
    "GET /metrics": 2,
    "GET /headkv/rows": 2,
}
POSTS = [name for name in OPERATIONS if name.startswith("POST")]


@pytest.fixture(scope="module")
def schema() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        app = make_served(monkeypatch).app()
        with listening(app) as url:
            yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def operations(schema: Any) -> dict[str, Any]:
    found = (result.ok() for result in schema.get_all_operations())
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def test_all_operations_are_tried(schema: Any) -> None:
    assert operations(schema).keys() == OPERATIONS.keys()


@pytest.mark.parametrize("name", OPERATIONS)
def test_right_requests(schema: Any, name: str) -> None:
    try_requests(operations(schema)[name], GenerationMode.POSITIVE, OPERATIONS[name])


@pytest.mark.parametrize("name", POSTS)
def test_wrong_requests(schema: Any, name: str) -> None:
    try_requests(operations(schema)[name], GenerationMode.NEGATIVE, OPERATIONS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", POSTS)
def test_ten_thousand_requests(schema: Any, name: str) -> None:
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        try_requests(operations(schema)[name], mode, 2500)


def try_requests(operation: Any, mode: GenerationMode, n: int) -> None:
    checks = [check for check in schemathesis.checks.CHECKS.get_all() if check.__name__ in CHECKS]
    assert len(checks) == len(CHECKS)

    @settings(max_examples=n, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def try_one(case: Any) -> None:
        case.call_and_validate(checks=checks)

    try_one()
