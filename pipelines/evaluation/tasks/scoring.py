"""How a question is put, and when an answer is right: by its letter where there are choices, else by exact match.

No language model judges: an answer that says the same in other words is wrong. What papers report with a judge is
higher, and comparable to this among strategies only.
"""

import re
import string
from dataclasses import dataclass

from occam.errors import InvalidInput
from pipelines.evaluation.tasks.task import Item

LETTERS = string.ascii_uppercase

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBERED = re.compile(r"^\(?[A-Z][.):]\s+")
_SAID = re.compile(r"(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?:\s+is)?\s*:?\s*\(?([A-Z])\b")
_BRACKETED = re.compile(r"\(([A-Z])\)")
_FIRST = re.compile(r"^([A-Z])(?:[.):,\s]*$|[.):,])")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """How a benchmark asks.

    text: with choices, of `question` and `options`; option: one of those, of `letter` and `choice`
    bare: without choices, of `question`
    """

    text: str = "{question}\n{options}\nAnswer with the option's letter from the given choices directly."
    option: str = "{letter}. {choice}"
    bare: str = "{question}"

    def ask(self, question: str, choices: tuple[str, ...] | None) -> str:
        """The text that the model gets."""
        if not choices:
            return self.bare.format(question=question.strip())
        options = [self.option.format(letter=letter, choice=choice) for letter, choice in _lettered(choices)]
        return self.text.format(question=question.strip(), options="\n".join(options))


def plain_choices(choices: tuple[str, ...]) -> tuple[str, ...]:
    """The choices without the letters that some files put in front of each."""
    return tuple(_NUMBERED.sub("", choice) for choice in choices) if all(map(_NUMBERED.match, choices)) else choices


def right_answer(given: object, choices: tuple[str, ...] | None) -> str:
    """What is right, from how a file says it: a choice's text, letter or index; InvalidInput if it is none of them."""
    if choices is None:
        return str(given)
    if isinstance(given, int) and 0 <= given < len(choices):
        return LETTERS[given]
    said = str(given).strip()
    for letter, choice in _lettered(choices):
        if said in (choice.strip(), letter, f"({letter})", f"{letter}."):
            return letter
    raise InvalidInput(f"The answer {given!r} is neither one of the {len(choices)} choices nor its letter.", "task")


def is_right(item: Item, text: str) -> bool:
    """Whether an answer is right."""
    if item.choices is None:
        return normalised(text) == normalised(item.answer)
    return chosen(text, item.choices) == item.answer


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles (unless there is nothing else) and spare blanks."""
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join((_ARTICLES.sub(" ", plain).strip() or plain).split())


def chosen(text: str, choices: tuple[str, ...]) -> str | None:
    """The letter that an answer names, in any of the usual ways, or by a choice's own text; None if it names none."""
    said = text.strip()
    for letter, choice in _lettered(choices):
        if said and normalised(said) == normalised(choice):
            return letter
    for pattern in (_FIRST, _BRACKETED, _SAID):
        if (match := pattern.search(said)) and match[1] in LETTERS[: len(choices)]:
            return match[1]
    return None


def _lettered(choices: tuple[str, ...]) -> list[tuple[str, str]]:
    if len(choices) > len(LETTERS):
        raise InvalidInput(f"A question may have {len(LETTERS)} choices, got {len(choices)}.", "task")
    return list(zip(LETTERS, choices, strict=False))
