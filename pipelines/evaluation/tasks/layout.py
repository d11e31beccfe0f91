"""How a benchmark lies on a user's disk, declared, and the one reader of all such declarations."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from occam.errors import InvalidInput
from pipelines.evaluation.tasks.entries import Entry
from pipelines.evaluation.tasks.scoring import Prompt

Row = dict[str, Any]

_SUFFIXES = ("", ".mp4", ".avi", ".mkv", ".webm", ".mov", ".gif")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A benchmark's files below its folder. Templates are of a row's fields, with `{file}` the question file's stem,
    `{row}` the row's number in it, `{folder}` of `folders`, and `{first_word}` of the question.

    questions: pattern of the question files, each a JSON list or a Parquet table of rows
    videos: templates of where a clip may lie, with or without its suffix; folders: of question files, by stem
    choices: the field, or the fields, of the choices; answer: the field of what is right
    answers: a second file with the answers by `id`: an object, or a list of rows that are joined; rows without an
    answer are left out
    span: fields of the stretch's first and last second, where a row has them; fps: of folders of pictures
    """

    questions: str
    videos: tuple[str, ...]
    id: str
    kind: str
    answer: str
    prompt: Prompt
    choices: str | tuple[str, ...] = ()
    question: str = "question"
    answers: str | None = None
    folders: Mapping[str, str] = field(default_factory=dict)
    span: tuple[str, str] | None = None
    fps: float = 1.0

    def entries(self, root: Path) -> list[Entry]:
        """The questions of the benchmark in `root`; InvalidInput where the files are not as declared."""
        files = sorted(root.glob(self.questions))
        if not files:
            raise InvalidInput(f"{root} holds no {self.questions}.", "task")
        answers = None if self.answers is None else _answers(root / self.answers, self.answer)
        return [entry for file in files for entry in self._entries(root, file, answers)]

    def _entries(self, root: Path, file: Path, answers: Mapping[str, Row] | None) -> Iterator[Entry]:
        for number, found in enumerate(_rows(file)):
            try:
                row = {"file": file.stem, "row": number, "folder": self.folders.get(file.stem, ""), **found}
                row["first_word"] = str(row[self.question]).split(maxsplit=1)[0].lower()
                if answers is not None:
                    if (known := answers.get(self.id.format_map(row))) is None:
                        continue
                    row |= known
                yield self._entry(root, row)
            except (KeyError, IndexError) as error:
                raise InvalidInput(f"{file.name}, row {number}: there is no {error}.", "task") from error

    def _entry(self, root: Path, row: Row) -> Entry:
        start_s, end_s = (row.get(name) for name in self.span) if self.span else (None, None)
        choices = [row[name] for name in self.choices] if isinstance(self.choices, tuple) else row[self.choices]
        return Entry(
            id=self.id.format_map(row),
            videos=tuple(root / (video.format_map(row) + suffix) for video in self.videos for suffix in _SUFFIXES),
            question=row[self.question],
            answer=row[self.answer],
            choices=tuple(map(str, choices)) or None,
            kind=self.kind.format_map(row),
            start_s=float(start_s or 0.0),
            end_s=None if end_s is None else float(end_s),
            fps=self.fps,
        )


def _rows(file: Path) -> list[Row]:
    rows = _parquet(file) if file.suffix == ".parquet" else _json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InvalidInput(f"{file.name} is no list of questions.", "task")
    return rows


def _answers(file: Path, answer: str) -> dict[str, Row]:
    known = _json(file)
    if isinstance(known, dict):
        return {str(key): {answer: value} for key, value in known.items()}
    return {str(row["question_id"]): row for row in _rows(file)}


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{file} cannot be read as JSON: {error}.", "task") from error


def _parquet(file: Path) -> list[Row]:
    try:
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise InvalidInput(f"{file.name} needs pyarrow: pip install 'occam-video[eval]'.", "task") from error
    rows: list[Row] = read_table(file).to_pylist()
    return rows
