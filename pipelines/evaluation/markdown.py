"""Measurements as Markdown, and their place in a document that people write by hand."""

from collections.abc import Sequence
from pathlib import Path

from occam.errors import InvalidInput
from pipelines.evaluation.statistics import Estimate


def percent(share: float) -> str:
    """With one decimal."""
    return f"{100 * share:.1f}"


def interval(value: Estimate, sign: str = "") -> str:
    """In per cent, `mean [low, high]`; sign "+" stands before what is above zero too."""
    mean, low, high = (f"{100 * each:{sign}.1f}" for each in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Of cells that hold no bar."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def rewritten(document: Path, section: str, text: str) -> str:
    """The document's text with that section replaced; InvalidInput where it cannot be read or lacks the section."""
    try:
        return replaced(document.read_text(), section, text)
    except OSError as error:
        raise InvalidInput(f"{document} cannot be read: {error.strerror}.", "document") from error


def replaced(document: str, section: str, text: str) -> str:
    """The document with what stands between the section's markers replaced; InvalidInput unless it has both, once."""
    first, last = f"<!-- {section} -->", f"<!-- /{section} -->"
    head, opened, rest = document.partition(first)
    _, closed, tail = rest.partition(last)
    if not (opened and closed) or first in tail or last in head + tail:
        raise InvalidInput(f"The document needs {first} and, behind it, {last}, once each.", "document")
    return f"{head}{first}\n\n{text.strip()}\n\n{last}{tail}"
