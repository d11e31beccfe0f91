"""The literal template against the one that the checkpoint ships: text, since a word-level tokenizer sees no spaces."""

from occam.models.checkpoint import embedded_models
from occam.models.prompt import VICUNA
from occam.models.video_llava import VideoLlava
from tests.parity.harness import load
from tests.parity.oracle_tower import FIRST_TURN, NEXT_TURN, PREFIX

QUESTIONS = ("what color is the ball ?", "where is it at the end ?")
ANSWER = "red"
MESSAGES = [
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTIONS[0]}]},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": QUESTIONS[1]},
]


def test_two_turns_are_what_the_checkpoints_own_template_renders() -> None:
    lm = load(embedded_models()["tiny-video-llava"]).lm
    assert isinstance(lm, VideoLlava)
    prompt, form = lm.prompt, lm.prompt.format
    rendered = prompt.tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    opened = form.opening("") + prompt.placeholder + form.question + QUESTIONS[0] + form.generation
    answered = form.answer + ANSWER + form.end
    assert rendered == opened + answered + form.following + QUESTIONS[1] + form.generation
    first, _ = prompt.turn_ids(QUESTIONS[0], first=True)
    second, _ = prompt.turn_ids(QUESTIONS[1], first=False)
    asked = [*prompt.prefix_ids(""), prompt.placeholder_id, *first]
    assert prompt.tokenizer.encode(rendered) == [*asked, *prompt.answer_ids(ANSWER), prompt.end_id, *second]


def test_vicunas_template_is_that_of_transformers_documentation() -> None:
    """`USER: <video>\\n<prompt1> ASSISTANT: <answer1></s>USER: <prompt2> ASSISTANT:`, and the oracle's own literals."""
    assert VICUNA.opening("") == PREFIX == "USER: "
    assert VICUNA.question + "{}" + VICUNA.generation == FIRST_TURN == "\n{} ASSISTANT:"
    assert VICUNA.following + "{}" + VICUNA.generation == NEXT_TURN == "USER: {} ASSISTANT:"
    assert (VICUNA.answer, VICUNA.end) == (" ", "</s>")
