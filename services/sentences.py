"""Pydantic's findings as plain sentences that name the field, the limit and the value."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Finding = Mapping[str, Any]
Path = tuple[str, ...]

_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
_SENTENCES: dict[str, Callable[[str, Any, Any], str]] = {
    "missing": lambda place, _, __: f"{place} is missing.",
    "extra_forbidden": lambda place, _, __: f"{place} is not a field of this request.",
    "literal_error": lambda place, given, ctx: f"{place} must be {ctx['expected']}, got {_shown(given)}.",
    "finite_number": lambda place, given, _: f"{place} must be a finite number, got {_shown(given)}.",
    "string_too_short": lambda place, given, ctx: (
        f"{place} must have at least {_count(ctx['min_length'], 'character')}, got {len(given)}."
    ),
    "string_too_long": lambda place, given, ctx: (
        f"{place} has {len(given)} characters, more than the limit of {ctx['max_length']}."
    ),
    "too_short": lambda place, _, ctx: (
        f"{place} must have at least {_count(ctx['min_length'], 'item')}, got {ctx['actual_length']}."
    ),
    "too_long": lambda place, given, ctx: (
        f"{place} has {ctx['actual_length'] or len(given)} items, more than the limit of {ctx['max_length']}."
    ),
    "value_error": lambda place, _, ctx: f"{place}: {ctx['error']}.",
    "union_tag_not_found": lambda place, _, __: f"{place}.type is missing.",
    "union_tag_invalid": lambda place, given, ctx: (
        f"{place}.type must be one of {ctx['expected_tags']}, got {_shown(given['type'])}."
    ),
}
_SHOWN = 48


def sentence(findings: Sequence[Finding], body: Any) -> tuple[str, str | None]:
    """What is wrong with a request, and the field at fault as it was sent.

    findings: pydantic's, of which the first decides, or where it is one branch of a union the deepest of that union's
    body: as it was read: bytes where its content type is not JSON's
    """
    first = _path(findings[0], body)
    inside = [(path, each) for each in findings if (path := _path(each, body))[: len(first)] == first]
    path = max((path for path, _ in inside), key=len)
    same = [each for found, each in inside if found == path]
    finding = same[0]
    if not path:
        # A rule over several fields has a sentence of its own.
        ruled = finding["type"] == "value_error"
        return f"{finding['ctx']['error']}." if ruled else _of_body(finding["input"]), None
    place, kind, given = ".".join(path), finding["type"], finding["input"]
    param = f"{place}.type" if kind.startswith("union_tag") else place
    if kinds := list(dict.fromkeys(_KINDS[each["type"]] for each in same if each["type"] in _KINDS)):
        return f"{place} must be {_listed(kinds)}, got {_shown(given)}.", param
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{place} must be {words} {finding['ctx'][name]}, got {_shown(given)}.", param
    told = _SENTENCES.get(kind)
    return (told(place, given, finding.get("ctx")) if told else f"{place}: {finding['msg']}."), param


def _path(finding: Finding, body: Any) -> Path:
    """The finding's place in the request, without the names of unions' branches that pydantic puts into it."""
    origin, *places = finding["loc"]
    if origin != "body":
        return tuple(map(str, places))
    path: list[str] = []
    value, tagged = body, False
    for place in places:
        if isinstance(value, dict):
            if value.get("type") == place and not tagged and place is not places[-1]:
                tagged = True
            elif place in value or (finding["type"] == "missing" and place is places[-1]):
                path.append(str(place))
                value, tagged = value.get(place), False
        elif isinstance(value, list) and isinstance(place, int):
            path.append(str(place))
            value = value[place]
    return tuple(path)


def _of_body(given: Any) -> str:
    wanted = "a JSON object, with the header Content-Type: application/json"
    if given is None:
        return f"The request has no body; it takes {wanted}."
    if isinstance(given, bytes):
        return f"The body was not read, for its Content-Type is not application/json; the request takes {wanted}."
    return f"The body must be a JSON object, got {_shown(given)}."


def _shown(value: Any) -> str:
    """A value as JSON, cut short; lists and objects by their kind alone."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _listed(words: Sequence[str]) -> str:
    *front, last = words
    return f"{', '.join(front)} or {last}" if front else last


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
