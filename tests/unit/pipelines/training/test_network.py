"""The training forward against the stock model: each packed conversation must be what it would be alone."""

import numpy as np
import pytest
import torch

from pipelines.evaluation.questions import Question, draw_questions
from pipelines.evaluation.renderer import draw_scene, render
from pipelines.training.model import FRAME_TOKENS, build_model, normalize, shrink
from pipelines.training.network import LOOK_LAYER, LateDrop, project, run_llm, run_tower
from pipelines.training.packing import IGNORE, REGISTER, pack, split_turns
from pipelines.training.tokenizer import EOS, encode

FRAMES = 2
VISUAL = FRAMES * FRAME_TOKENS


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(llm_layers=5).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def frames():
    return torch.stack([shrink(render(draw_scene(seed), 96)[:FRAMES]) for seed in (0, 1)])


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    return [split_turns(draw_questions(draw_scene(seed), rng, 9), rng) for seed in (0, 1)]


def text_of(conversation):
    first, *rest = [f"{question.text} ASSISTANT: {question.answer}</s>" for question in conversation]
    return "".join(["\n" + first, *("USER: " + turn for turn in rest)])


def logits(model, frames, text, zero_token=False, **options):
    features = run_tower(model, frames.flatten(0, 1), zero_token)
    prefix = project(model, features, len(frames), zero_token)
    return model.lm_head(run_llm(model, prefix, text, **options).text)


def test_packed_conversations_equal_the_stock_model_run_on_each_alone(model, frames, clips):
    ours = logits(model, frames, pack(clips, FRAMES, register=False))
    assert max(len(turns) for clip in clips for turns in clip) > 1
    for row, conversations in enumerate(clips):
        start = 0
        for conversation in conversations:
            text = encode(text_of(conversation))
            ids = torch.tensor([[*encode("USER:"), *encode("<video>") * VISUAL, *text]])
            stock = model(input_ids=ids, pixel_values_videos=normalize(frames[row : row + 1])).logits[0, 1 + VISUAL :]
            torch.testing.assert_close(ours[row, start : start + len(text)], stock, atol=1e-5, rtol=0)
            start += len(text)


def test_targets_are_the_answers_and_the_end_that_follows(clips):
    text = pack(clips, FRAMES, register=True)
    for row, conversations in enumerate(clips):
        wanted = [word for turns in conversations for q in turns for word in (*encode(q.answer), encode(EOS)[0])]
        assert text.targets[row][text.targets[row] != IGNORE].tolist() == wanted
        assert text.kinds[row] == tuple(q.kind for turns in conversations for q in turns)


def test_the_register_takes_no_position_and_moves_no_text(clips):
    plain, marked = (pack(clips, FRAMES, register=value) for value in (False, True))
    for row in range(len(clips)):
        is_text = marked.ids[row] != REGISTER
        length = int((plain.allowed[row].diagonal()).sum())
        turns = int((~is_text).sum())
        assert turns == len(plain.kinds[row])
        assert marked.positions[row][is_text][: length - turns].equal(plain.positions[row][: length - turns])
        for place in (~is_text).nonzero().flatten().tolist():
            assert marked.positions[row, place] == marked.positions[row, place + 1]


def test_a_register_is_seen_by_its_own_turn_alone(model, frames):
    turns = [Question(kind="dot", text="is there a dot", answer=answer) for answer in ("yes", "no")]
    text = pack([[turns]], FRAMES, register=True)
    first, second = (text.ids[0] == REGISTER).nonzero().flatten().tolist()
    assert text.allowed[0, :, first].nonzero().flatten().tolist() == list(range(first, second))
    assert text.allowed[0, -1, second]


def test_dropping_nothing_changes_nothing_and_dropping_keeps_order_and_positions(model, frames, clips):
    text = pack(clips, FRAMES, register=True)
    everything = torch.arange(VISUAL).expand(len(clips), -1)
    full = logits(model, frames, text, zero_token=True)
    same = logits(model, frames, text, zero_token=True, late=LateDrop(layer=1, index=everything))
    fewer = logits(model, frames, text, zero_token=True, late=LateDrop(layer=1, index=everything[:, ::2]))
    torch.testing.assert_close(full, same, atol=1e-5, rtol=0)
    assert (full - fewer).abs().max() > 1e-4
    prefix = project(model, run_tower(model, frames.flatten(0, 1), True), len(clips), True)
    assert prefix.select(everything[:, 3::5]).positions[0].tolist() == list(range(4, VISUAL + 1, 5))


def test_entering_tokens_keep_the_positions_they_had(model, frames):
    """A pruned prefix equals the stock language model given the same embeddings and explicit positions."""
    text = pack([[[Question(kind="dot", text="is there a dot", answer="yes")]]], FRAMES, register=False)
    kept = torch.tensor([[0, 5, 6, 40, 73]])
    prefix = project(model, run_tower(model, frames[0], False), 1, False).select(kept)
    ours = run_llm(model, prefix, text).text
    embed = model.model.language_model.embed_tokens
    embeddings = torch.cat([embed(torch.tensor([encode("USER:")])), prefix.hidden, embed(text.ids)], dim=1)
    positions = torch.cat([torch.zeros(1, 1, dtype=torch.long), kept + 1, text.positions], dim=1)
    stock = model.model.language_model(inputs_embeds=embeddings, position_ids=positions).last_hidden_state
    torch.testing.assert_close(ours, stock[:, 1 + kept.shape[1] :], atol=1e-5, rtol=0)


def test_looks_are_the_attention_of_the_stock_layer(model, frames):
    text = pack([[[Question(kind="dot", text="is there a dot", answer="yes")]]], FRAMES, register=False)
    looks = run_llm(model, project(model, run_tower(model, frames[0], False), 1, False), text).looks
    ids = torch.tensor([[*encode("USER:"), *encode("<video>") * VISUAL, *text.ids[0].tolist()]])
    model.set_attn_implementation("eager")
    stock = model(input_ids=ids, pixel_values_videos=normalize(frames[:1]), output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(looks.softmax(-1)[0], stock[LOOK_LAYER][0, 0, 1 + VISUAL :], atol=1e-6, rtol=0)
