"""A user's own task: a JSONL file, a question a line, its videos beside it or anywhere.

{"video": "clips/1.mp4", "question": "What is it?", "answer": "a dog"}
{"video": "clips/1.mp4", "question": "Where?", "answer": "B", "choices": ["park", "beach"], "kind": "place"}

`answer` is a choice's text, letter or index (from 0) where there are choices. `id`, `kind`, `start_s` and `end_s` may
be left out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from occam.errors import InvalidInput
from pipelines.evaluation.tasks.entries import Entry

_NEEDED = ("video", "question", "answer")
_KNOWN = (*_NEEDED, "choices", "id", "kind", "start_s", "end_s")


def read_jsonl(path: Path) -> list[Entry]:
    """The questions of the file; InvalidInput, with the line's number, for what is none."""
    try:
        lines = path.read_text("utf-8-sig").split("\n")  # texts in JSON may hold what else ends a line
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as UTF-8 text: {error}.", "task") from error
    return list(_entries(path, lines))


def _entries(path: Path, lines: list[str]) -> Iterator[Entry]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _row(f"{path.name}, line {number}", line)
        end_s = row.get("end_s")
        yield Entry(
            id=str(row.get("id", f"line {number}")),
            videos=(path.parent / row["video"],),
            question=row["question"],
            answer=row["answer"],
            choices=tuple(map(str, row["choices"])) if row.get("choices") else None,
            kind=str(row.get("kind", "")),
            start_s=float(row.get("start_s", 0.0)),
            end_s=None if end_s is None else float(end_s),
        )


def _row(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InvalidInput(f"{where}: it is no JSON: {error}.", "task") from error
    if not isinstance(row, dict) or any(not isinstance(row.get(name), str) for name in ("video", "question")):
        raise InvalidInput(f"{where}: a line is an object with the texts `video` and `question`.", "task")
    if not isinstance(row.get("answer"), str | int):
        raise InvalidInput(f"{where}: `answer` must be a text, or the index of a choice.", "task")
    if unknown := row.keys() - set(_KNOWN):
        raise InvalidInput(f"{where}: {', '.join(sorted(unknown))} is none of {', '.join(_KNOWN)}.", "task")
    if not isinstance(row.get("choices", []), list | None):
        raise InvalidInput(f"{where}: `choices` must be a list.", "task")
    return row
