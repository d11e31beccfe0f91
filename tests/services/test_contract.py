"""The OpenAPI document against the service in one process: what it allows, what it forbids, what it shows."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.redis_server import RedisServer
from tests.services.contract import hold, operations, subject

EXAMPLES = 12
OPERATIONS = operations()


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer
) -> Iterator[tuple[str, dict[str, str | int]]]:
    with subject(tmp_path_factory.mktemp("contract"), shared_redis.url) as live:
        yield live


@pytest.mark.parametrize("label", OPERATIONS)
def test_an_operation_is_as_the_document_says(service: tuple[str, dict[str, str | int]], label: str) -> None:
    url, known = service
    seen = hold(OPERATIONS[label], url, known, EXAMPLES)
    assert any(each.startswith("positive 2") for each in seen) or label.startswith("DELETE"), seen


DOCUMENT: dict[str, Any] = next(iter(OPERATIONS.values())).schema.raw_schema


def _of(label: str) -> dict[str, Any]:
    method, path = label.split()
    return DOCUMENT["paths"][path][method.lower()]


def _contents(label: str) -> Iterator[tuple[str, dict[str, Any]]]:
    operation = _of(label)
    yield from ((f"request {kind}", each) for kind, each in operation.get("requestBody", {}).get("content", {}).items())
    for status, response in operation["responses"].items():
        yield from ((f"{status} {kind}", each) for kind, each in response.get("content", {}).items())


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema that a reference leads to."""
    while "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


@pytest.mark.parametrize("label", OPERATIONS)
def test_an_operation_is_described_with_examples_that_are_true(label: str) -> None:
    operation = _of(label)
    assert operation["description"]
    assert operation["tags"]
    for name, content in _contents(label):
        schema = _resolved(content.get("schema", {}))  # of events, each has one, and not all of them together
        examples = [content["example"]] if "example" in content else schema.get("examples", [])
        shown = examples or [field for field in schema.get("properties", {}).values() if "examples" in field]
        assert shown or schema.get("properties", {}).keys() <= {"status"}, f"{label}: {name} has no example"
        for example in examples:
            jsonschema.validate(example, {**schema, "components": DOCUMENT["components"]})


@pytest.mark.parametrize("label", OPERATIONS)
def test_an_operations_responses_name_their_headers(label: str) -> None:
    for status, response in _of(label)["responses"].items():
        names = {"X-Request-Id"} | ({"Retry-After"} if status in ("429", "503") else set())
        assert set(response["headers"]) >= names, f"{label} {status}"
