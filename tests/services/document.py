"""Requests for every route of the OpenAPI document that a service serves, so that new routes are picked up."""

import re
from dataclasses import dataclass
from typing import Any

from tests.services.world import World

METHODS = ("get", "post", "put", "patch", "delete")


@dataclass(frozen=True)
class Operation:
    """One method of one path of the document."""

    method: str
    template: str
    body: Any

    def path(self, **values: str) -> str:
        """The path with these values for its parameters; for the others 0."""
        return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], "0"), self.template)

    @property
    def parameters(self) -> set[str]:
        return set(re.findall(r"\{(\w+)\}", self.template))


async def operations(service: World) -> list[Operation]:
    """All of them; each that takes JSON with the first example of its body."""
    document = (await service.http.get("/openapi.json")).json()
    return [
        Operation(method.upper(), template, _example(operation, document))
        for template, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    ]


def _example(operation: dict[str, Any], document: dict[str, Any]) -> Any:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return None
    schema = content["schema"]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    given = [content.get("example"), *(each.get("value") for each in content.get("examples", {}).values())]
    examples = [each for each in (*given, *schema.get("examples", [])) if each is not None]
    assert examples, f"{operation['operationId']} takes a body, and the document must show one"
    return examples[0]
