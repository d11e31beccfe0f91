"""The training forward against the stock models: each packed conversation must be what it would be alone."""

import numpy as np
import pytest
import torch

from occam.models.preprocess import normalise
from pipelines.evaluation.questions import Question, draw_questions
from pipelines.evaluation.renderer import SceneConfig, draw_scene, render
from pipelines.training.decoder import (
    CLOSING_HEAD,
    LOOK_HEAD,
    LOOK_LAYER,
    OPENING_HEAD,
    POINT_LAYER,
    LateDrop,
    run,
)
from pipelines.training.packing import IGNORE, REGISTER, pack, split_turns
from pipelines.training.student import shrink
from pipelines.training.tiny_qwen3_vl import TinyQwen3VL
from pipelines.training.tiny_video_llava import MEAN, STD, TinyVideoLlava

DOT = Question(kind="dot", text="is there a dot", answer="yes")


def random_student(kind):
    torch.manual_seed(0)
    student = kind.build(llm_layers=6)
    student.model.eval().requires_grad_(False)
    for parameter in student.model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    if kind is TinyVideoLlava:
        student.model.model.image_tower.load_state_dict(student.tower.state_dict())
    return student


@pytest.fixture(scope="module", params=[TinyVideoLlava, TinyQwen3VL], ids=lambda kind: kind.name)
def student(request):
    return random_student(request.param)


def clips_of(frames):
    config = SceneConfig(frames=frames)
    return torch.stack([shrink(render(draw_scene(seed, config), 96)) for seed in (0, 1)])


def conversations(frames, count=9):
    rng = np.random.default_rng(0)
    scenes = [draw_scene(seed, SceneConfig(frames=frames)) for seed in (0, 1)]
    return [split_turns(draw_questions(scene, rng, count), rng) for scene in scenes]


def text_of(student, conversation):
    form = student.words.format
    turns = [f"{q.text}{form.generation}{form.answer}{q.answer}{form.end}" for q in conversation]
    return form.question + form.following.join(turns)


def stock_inputs(student, clip, text):
    """What the stock model takes of one clip [F, 3, 96, 96] and a conversation's text."""
    layout = student.layout(len(clip))
    ids = torch.cat([layout.ids, torch.tensor(student.words.encode(text))])[None]
    kind = "image" if len(clip) == 1 else "videos"
    if isinstance(student, TinyVideoLlava):
        pixels = normalise(clip, MEAN, STD)
        return {
            "input_ids": ids,
            **({"pixel_values_images": pixels} if kind == "image" else {"pixel_values_videos": pixels[None]}),
        }
    patches, grid = student.patches(clip[None])
    pads = {"<|image_pad|>": 1, "<|video_pad|>": 2}
    types = sum((ids == student.words.id(pad)) * number for pad, number in pads.items())
    names = ("pixel_values", "image_grid_thw") if kind == "image" else ("pixel_values_videos", "video_grid_thw")
    values = (patches, torch.tensor([grid]))
    return {"input_ids": ids, "mm_token_type_ids": types, **dict(zip(names, values, strict=True))}


def logits(student, frames, text, zero_token=False, **options):
    prefix = student.prefix(frames, student.see(frames, zero_token))
    return student.head(run(student, prefix, text, **options).text)


@pytest.mark.parametrize("frames", [1, 3, 4])
def test_packed_conversations_equal_the_stock_model_run_on_each_alone(student, frames):
    clips, talks = clips_of(frames), conversations(frames)
    layout = student.layout(frames)
    ours = logits(student, clips, pack(student.words, talks, layout.start, register=False))
    assert max(len(turns) for clip in talks for turns in clip) > 1
    for row, clip in enumerate(talks):
        start = 0
        for conversation in clip:
            inputs = stock_inputs(student, clips[row], text_of(student, conversation))
            stock = student.model(**inputs).logits[0, len(layout.ids) :]
            torch.testing.assert_close(ours[row, start : start + len(stock)], stock, atol=2e-5, rtol=0)
            start += len(stock)


def test_targets_are_the_answers_and_the_end_that_follows(student):
    talks, words = conversations(4), student.words
    text = pack(words, talks, 7, register=True)
    for row, clip in enumerate(talks):
        questions = [q for turns in clip for q in turns]
        wanted = [id_ for q in questions for id_ in words.encode(q.answer + words.format.end)]
        assert text.targets[row][text.targets[row] != IGNORE].tolist() == wanted
        assert text.targets[row][text.answers[row]].tolist() == [words.id(q.answer) for q in questions]
        assert text.kinds[row] == tuple(q.kind for q in questions)


def test_the_register_takes_no_position_and_moves_no_text(student):
    talks = conversations(4)
    plain, marked = (pack(student.words, talks, 7, register=value) for value in (False, True))
    for row in range(len(talks)):
        is_text = marked.ids[row] != REGISTER
        length = int((plain.allowed[row].diagonal()).sum())
        turns = int((~is_text).sum())
        assert turns == len(plain.kinds[row])
        assert marked.positions[row][is_text][: length - turns].equal(plain.positions[row][: length - turns])
        for place in (~is_text).nonzero().flatten().tolist():
            assert marked.positions[row, place] == marked.positions[row, place + 1]


def test_a_register_is_seen_by_its_own_turn_alone(student):
    text = pack(student.words, [[[DOT, DOT]]], 7, register=True)
    first, second = (text.ids[0] == REGISTER).nonzero().flatten().tolist()
    assert text.allowed[0, :, first].nonzero().flatten().tolist() == list(range(first, second))
    assert text.allowed[0, -1, second]


def test_dropping_nothing_changes_nothing_and_dropping_something_does(student):
    clips, layout = clips_of(4), student.layout(4)
    text = pack(student.words, conversations(4), layout.start, register=True)
    everything = torch.arange(len(layout.visual)).expand(2, -1)
    full = logits(student, clips, text, zero_token=True)
    for layer in (2, 3):
        same = logits(student, clips, text, zero_token=True, late=LateDrop(layer=layer, index=everything))
        fewer = logits(student, clips, text, zero_token=True, late=LateDrop(layer=layer, index=everything[:, ::2]))
        torch.testing.assert_close(full, same, atol=1e-5, rtol=0)
        assert (full - fewer).abs().max() > 1e-4


def test_entering_tokens_keep_position_plane_and_order(student):
    """A pruned prefix equals the stock language model given the same embeddings, positions and DeepStack planes."""
    clips, layout = clips_of(4)[:1], student.layout(4)
    text = pack(student.words, [[[DOT]]], layout.start, register=False)
    kept = torch.tensor([[0, 5, 6, 40, 71]])
    whole = student.prefix(clips, student.see(clips, zero_token=False))
    ours = run(student, whole.select(kept), text).text
    stays = torch.ones(len(layout.ids), dtype=torch.bool)
    stays[layout.visual] = False
    stays[layout.visual[kept[0]]] = True
    embeddings = torch.cat([whole.hidden[:, stays], student.llm.embed_tokens(text.ids)], dim=1)
    positions = torch.cat([whole.positions[:, :, stays], text.positions.expand(len(whole.positions), 1, -1)], dim=2)
    planes = {}
    if whole.planes:
        shown = torch.zeros(1, embeddings.shape[1], dtype=torch.bool)
        shown[0, : int(stays.sum())] = (whole.planes[0][0, stays] != 0).any(dim=1)
        planes = {
            "visual_pos_masks": shown,
            "deepstack_visual_embeds": [plane[0, layout.visual[kept[0]]] for plane in whole.planes],
        }
    stock = student.llm(
        inputs_embeds=embeddings, position_ids=positions if len(positions) > 1 else positions[0], **planes
    ).last_hidden_state
    torch.testing.assert_close(ours, stock[:, int(stays.sum()) :], atol=2e-5, rtol=0)


def test_a_register_enters_with_the_planes_of_its_views(student):
    clips = clips_of(4)
    prefix = student.prefix(clips, student.see(clips, zero_token=True))
    assert prefix.register.shape == (2, 1 + len(prefix.planes), 192)
    text = pack(student.words, conversations(4), student.layout(4).start, register=True)
    moved = prefix.register.clone()
    for level in range(moved.shape[1]):
        changed = prefix.register.clone()
        changed[:, level] += 1
        prefix_changed = type(prefix)(**{**vars(prefix), "register": changed})
        assert (run(student, prefix_changed, text).text - run(student, prefix, text).text).abs().max() > 1e-3
    assert moved.equal(prefix.register)


def test_looks_are_the_attention_of_the_stock_layers(student):
    clips, layout = clips_of(4)[:1], student.layout(4)
    text = pack(student.words, [[[DOT]]], layout.start, register=False)
    output = run(student, student.prefix(clips, student.see(clips, zero_token=False)), text)
    student.model.set_attn_implementation("eager")
    stock = student.model(**stock_inputs(student, clips[0], text_of(student, [DOT])), output_attentions=True).attentions
    student.model.set_attn_implementation("sdpa")
    taught = (
        (output.look, LOOK_LAYER, LOOK_HEAD),
        (output.opening, POINT_LAYER, OPENING_HEAD),
        (output.closing, POINT_LAYER, CLOSING_HEAD),
    )
    for look, layer, head in taught:
        wanted = stock[layer][0, head, len(layout.ids) :]
        torch.testing.assert_close(look.logits.softmax(-1)[0], wanted, atol=1e-5, rtol=0)
        assert look.visual[0].equal(layout.visual)
