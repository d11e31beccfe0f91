"""Qwen3-VL with pruning off is stock transformers: ids and pixels of its processor, logits to 1e-4, the same text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from occam.config import EngineConfig, NoPruning
from occam.engine.engine import Engine
from occam.engine.prefix import encode
from occam.errors import InvalidInput
from occam.tensors import PrefixState
from occam.types import FrameBatch
from tests.parity.checkpoint_qwen import random_frames
from tests.parity.harness import QUESTIONS, ask, image_of, pruning_of, see
from tests.parity.oracle import Rule
from tests.parity.stock_processors import process

KEEP_ALL = Rule(lambda1=0, lambda2=0, cut=3, register="mean_threshold")
STEPS = 8


def video(count: int, height: int, width: int, fps: float = 2.0, step: int = 1) -> FrameBatch:
    """Every `step`-th frame of a video of `fps`."""
    indices = step * np.arange(count)
    frames = random_frames(count, height, width, seed=count)
    return FrameBatch(frames=frames, pts_seconds=indices / fps, indices=indices, digest="0" * 64)


def image(height: int, width: int) -> FrameBatch:
    return image_of(random_frames(1, height, width, seed=height)[0])


@dataclass(frozen=True, kw_only=True)
class Case:
    media: Sequence[FrameBatch]
    system: str = ""
    question: str = QUESTIONS[0]


CASES = {
    "two frames": Case(media=[video(2, 48, 64)]),
    "one group and a half": Case(media=[video(3, 96, 40, fps=29.97, step=7)]),
    "sixteen frames": Case(media=[video(16, 30, 100, fps=23.976, step=13)], system="what is the ball ?\n"),
    "wide image": Case(media=[image(20, 130)]),
    "tall image": Case(media=[image(150, 33)], system="system"),
    "square image": Case(media=[image(64, 64)], question="\n\n? > what"),
    "two images": Case(media=[image(48, 64), image(80, 31)], system="user\n"),
    "image and video": Case(media=[image(40, 40), video(5, 40, 56)]),
}


@pytest.fixture(scope="module")
def prompts(qwen_checkpoint: Path, qwen_tokenizer: Any) -> dict[str, dict[str, Any]]:
    """By case, what the stock processor makes, less the pair of vision tokens that it leaves round a whole video."""
    returned = process(qwen_checkpoint, [_call(case) for case in CASES.values()])
    start, end, *pads = qwen_tokenizer.convert_tokens_to_ids(
        ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    )
    for case, prompt in zip(CASES.values(), returned, strict=True):
        ids = prompt["input_ids"][0].tolist()
        outer = [
            (token == start and ids[at + 1] not in pads) or (token == end and ids[at - 1] == end)
            for at, token in enumerate(ids)
        ]
        assert sum(outer) == 2 * sum(media.kind == "video" for media in case.media)
        for name in ("input_ids", "mm_token_type_ids", "attention_mask"):
            prompt[name] = prompt[name][:, ~torch.tensor(outer)]
    return dict(zip(CASES, returned, strict=True))


def _call(case: Case) -> dict[str, Any]:
    """The keywords of the stock processor's call for a case."""
    videos = [media for media in case.media if media.kind == "video"]
    images = [media for media in case.media if media.kind == "image"]
    media_text = "".join(f"<|vision_start|><|{media.kind}_pad|><|vision_end|>" for media in case.media)
    system = f"<|im_start|>system\n{case.system}<|im_end|>\n" if case.system else ""
    text = f"{system}<|im_start|>user\n{media_text}{case.question}<|im_end|>\n<|im_start|>assistant\n"
    call: dict[str, Any] = {"text": [text]}
    if images:
        call["images"] = [torch.from_numpy(media.frames[0]).permute(2, 0, 1) for media in images]
    if videos:
        call["videos"] = [torch.from_numpy(media.frames).permute(0, 3, 1, 2) for media in videos]
        call["video_metadata"] = [
            {
                "fps": float(media.indices[-1] / media.pts_seconds[-1]),
                "frames_indices": media.indices.tolist(),
                "total_num_frames": int(media.indices[-1]) + 1,
            }
            for media in videos
        ]
        call |= {"do_sample_frames": False, "cap_pixels_per_frame": True}
    return call


@pytest.mark.parametrize("rule", [None, KEEP_ALL], ids=["none", "keeping all"])
@pytest.mark.parametrize("name", CASES)
def test_one_question_equals_stock_generate(
    qwen_engine: Engine, qwen_stock: Any, prompts: dict[str, dict[str, Any]], name: str, rule: Rule | None
) -> None:
    case, prompt, pruning = CASES[name], prompts[name], pruning_of(rule)
    state = see(qwen_engine, case.media, pruning, system=case.system)
    reply = ask(qwen_engine, state, [case.question], pruning, STEPS)[0]
    assert [*state.ids.tolist(), *reply.answer.turn.suffix_ids] == prompt["input_ids"][0].tolist()
    grids = {name: value for name, value in prompt.items() if name.endswith("_thw")}
    positions, _ = qwen_stock.model.get_rope_index(prompt["input_ids"], prompt["mm_token_type_ids"], **grids)
    assert torch.equal(state.positions, positions[:, 0, : len(state)])
    assert state.next_position == int(positions[:, 0, len(state)].max())
    out = qwen_stock.generate(
        **prompt, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    assert reply.answer.turn.generated_ids == tuple(out.sequences[0, prompt["input_ids"].shape[1] :].tolist())
    torch.testing.assert_close(reply.logits, torch.cat(out.logits), atol=1e-4, rtol=0)


def test_a_follow_up_equals_one_long_stock_prompt(
    qwen_engine: Engine, qwen_stock: Any, qwen_tokenizer: Any, prompts: dict[str, dict[str, Any]]
) -> None:
    case, prompt = CASES["image and video"], prompts["image and video"]
    state = see(qwen_engine, case.media, NoPruning())
    first, second = ask(qwen_engine, state, [case.question, "where ?"], NoPruning(), STEPS)
    more = qwen_tokenizer("<|im_end|>\n<|im_start|>user\nwhere ?<|im_end|>\n<|im_start|>assistant\n").input_ids
    generated = [list(reply.answer.turn.generated_ids) for reply in (first, second)]
    tail = torch.tensor([[*generated[0], *more, *generated[1]]])
    media = {name: value for name, value in prompt.items() if name.startswith(("pixel", "image", "video"))}
    with torch.no_grad():
        logits = qwen_stock(
            input_ids=torch.cat([prompt["input_ids"], tail], dim=1),
            mm_token_type_ids=torch.cat([prompt["mm_token_type_ids"], torch.zeros_like(tail)], dim=1),
            **media,
        ).logits[0]
    torch.testing.assert_close(second.logits, logits[-1 - STEPS : -1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("rule", [None, Rule(lambda1=0.97, lambda2=1, cut=3)], ids=["none", "occam"])
def test_chunks_of_any_even_size_give_the_same_state(qwen_engine: Engine, rule: Rule | None) -> None:
    media, pruning = [video(11, 48, 64, fps=29.97, step=5)], pruning_of(rule)
    whole = see(qwen_engine, media, pruning, chunk_frames=11)
    reply = ask(qwen_engine, whole, QUESTIONS[:1], pruning, STEPS)[0]
    for chunk_frames in (2, 4):
        state = see(qwen_engine, media, pruning, chunk_frames=chunk_frames)
        for name in ("ids", "positions", "view", "patch", "view_pts", "view_index", "view_grid"):
            assert torch.equal(getattr(state, name), getattr(whole, name))
        for one, other in zip(_floats(state), _floats(whole), strict=True):
            assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp_min(1)
        again = ask(qwen_engine, state, QUESTIONS[:1], pruning, STEPS)[0]
        assert again.answer.turn == reply.answer.turn
        torch.testing.assert_close(again.logits, reply.logits, atol=1e-5, rtol=1e-5)


def _floats(state: PrefixState) -> list[torch.Tensor]:
    return [*state.keys, *state.values, state.hidden, *state.planes, state.register_sum]


def test_a_batch_of_two_lengths_equals_the_stock_model(
    qwen_engine: Engine, qwen_stock: Any, prompts: dict[str, dict[str, Any]]
) -> None:
    """Left-padded, through the layer loop alone: what batching across requests stands on."""
    names, decoder = ("two frames", "one group and a half"), qwen_engine.lm.decoder
    lengths = [prompts[name]["input_ids"].shape[1] for name in names]
    batch, longest = len(names), max(lengths)
    ids_BT, kinds_BT = torch.zeros(2, batch, longest, dtype=torch.int64)
    attended_BT = torch.zeros(batch, longest, dtype=torch.bool)
    x_BTC, planes = decoder.embed(ids_BT), []
    with torch.inference_mode():
        for at, (name, length) in enumerate(zip(names, lengths, strict=True)):
            ids_BT[at, -length:] = prompts[name]["input_ids"][0]
            kinds_BT[at, -length:] = prompts[name]["mm_token_type_ids"][0]
            attended_BT[at, -length:] = True
        x_BTC = decoder.embed(ids_BT)
        tokens = [encode(qwen_engine.lm, CASES[name].media[0], NoPruning()) for name in names]
        visual_BT = kinds_BT == 2
        x_BTC[visual_BT] = torch.cat([each.embeddings[each.view >= 0] for each in tokens])
        for level in range(decoder.levels):
            plane = torch.zeros_like(x_BTC)
            plane[visual_BT] = torch.cat([each.planes[level][each.view >= 0] for each in tokens])
            planes.append(plane)
        grid = torch.cat([prompts[name]["video_grid_thw"] for name in names])
        positions, _ = qwen_stock.model.get_rope_index(
            ids_BT, kinds_BT, video_grid_thw=grid, attention_mask=attended_BT.long()
        )
        order = torch.arange(longest)
        visible = (order[:, None] >= order) & (attended_BT[:, None, None] | torch.eye(longest, dtype=torch.bool))
        hidden = decoder.run_layers(x_BTC, 0, decoder.layers, DynamicCache(), positions, visible, planes)
        logits = decoder.logits(hidden)
        expected = qwen_stock(
            input_ids=ids_BT,
            attention_mask=attended_BT.long(),
            mm_token_type_ids=kinds_BT,
            pixel_values_videos=torch.cat([prompts[name]["pixel_values_videos"] for name in names]),
            video_grid_thw=grid,
        ).logits
    assert lengths[0] != lengths[1]
    torch.testing.assert_close(logits[attended_BT], expected[attended_BT], atol=1e-4, rtol=0)


def test_the_embedded_info_says_what_the_family_takes(qwen_engine: Engine) -> None:
    info = qwen_engine.info
    assert (info.family, info.media, info.group, info.frames) == ("qwen3_vl", ("video", "image"), 2, 16)
    assert (info.layers, info.cut, info.max_positions) == (6, 2, 1024)


def test_a_chunk_that_cuts_a_group_apart_is_refused(qwen_engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="groups of 2; chunk_frames must be a multiple of that, got 3"):
        Engine(qwen_engine.lm, EngineConfig(chunk_frames=3))
