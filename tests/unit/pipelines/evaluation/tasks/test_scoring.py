"""Prompts, and when an answer is right."""

import pytest

from occam.errors import InvalidInput
from pipelines.evaluation.tasks.scoring import Prompt, chosen, is_right, normalised, plain_choices, right_answer
from pipelines.evaluation.tasks.task import Item

CHOICES = ("a red ball", "Two dogs.", "the park", "it moves left")


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        (" (B) Two dogs.", "B"),
        ("B) Two dogs", "B"),
        ("The best answer is: C", "C"),
        ("The correct option is (D), since it moves.", "D"),
        ("Answer: A", "A"),
        ("two dogs", "B"),
        ("Red ball", "A"),
        ("A", "A"),
        ("A red one moves", None),
        ("E", None),
        ("I think", None),
        ("", None),
        ("b", None),
    ],
)
def test_the_letter_that_an_answer_names(said: str, letter: str | None) -> None:
    assert chosen(said, CHOICES) == letter


@pytest.mark.parametrize(
    ("said", "truth", "right"),
    [
        ("A dog.", "dog", True),
        ("top-left", "Top-Left", True),
        ("the  dog", "a dog!", True),
        ("a big dog", "dog", False),
        ("ant", "t", False),
        ("", "dog", False),
        ("", "a", False),
    ],
)
def test_open_answers_match_exactly_after_normalising(said: str, truth: str, right: bool) -> None:
    item = Item(id="1", question="", answer=truth, choices=None, kind="")
    assert is_right(item, said) is right
    assert (normalised(said) == normalised(truth)) is right


def test_with_choices_only_the_letter_counts() -> None:
    item = Item(id="1", question="", answer="B", choices=CHOICES, kind="")
    assert is_right(item, "(B)")
    assert is_right(item, "Two dogs")
    assert not is_right(item, "(A)")


@pytest.mark.parametrize(
    ("given", "letter"), [(0, "A"), (3, "D"), ("C", "C"), ("(C)", "C"), ("the park", "C"), (" the park ", "C")]
)
def test_a_file_may_say_what_is_right_in_several_ways(given: object, letter: str) -> None:
    assert right_answer(given, CHOICES) == letter


@pytest.mark.parametrize("given", [4, -1, "E", "a dog", ""])
def test_what_is_no_choice_is_refused(given: object) -> None:
    with pytest.raises(InvalidInput, match="neither one of the 4 choices nor its letter"):
        right_answer(given, CHOICES)


def test_letters_in_front_of_choices_are_taken_off_all_or_none() -> None:
    assert plain_choices(("A. one", "B. two")) == ("one", "two")
    assert plain_choices(("A. one", "two")) == ("A. one", "two")


def test_a_prompt_has_its_options_only_where_there_are_choices() -> None:
    prompt = Prompt(text="Q: {question}\n{options}\nLetter?", option="({letter}) {choice}", bare="{question} Briefly.")
    assert prompt.ask(" What {is} it? ", ("a", "{b}")) == "Q: What {is} it?\n(A) a\n(B) {b}\nLetter?"
    assert prompt.ask("What?", None) == "What? Briefly."
