"""The oracle itself: without pruning it is the stock model, and its parts do what the description says."""

from typing import Any

import pytest
import torch

from tests.parity.checkpoint import NEURONS, PATCHES, pixels, random_frames
from tests.parity.oracle import Rule, converse
from tests.parity.oracle_tower import VideoLlavaEye, look

QUESTIONS = ("what colour is the ball ?", "where does it go then ?")
KEEP_ALL = Rule(lambda1=0, lambda2=0, cut=3, register="mean_threshold", keep_cls=True)


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("rule", [None, KEEP_ALL], ids=["off", "keep all"])
def test_without_pruning_it_is_the_stock_model(stock: Any, tokenizer: Any, count: int, rule: Rule | None) -> None:
    video = pixels(random_frames(count))
    turn = converse(VideoLlavaEye(stock, tokenizer, video), QUESTIONS[:1], rule, steps=8)[0]
    placeholders = "<video>" * count * (PATCHES + 1)
    prompt = tokenizer(f"USER: {placeholders}\n{QUESTIONS[0]} ASSISTANT:", return_tensors="pt")
    out = stock.generate(
        **prompt,
        pixel_values_videos=video[None],
        max_new_tokens=8,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert turn.generated == out.sequences[0, prompt.input_ids.shape[1] :].tolist()
    torch.testing.assert_close(turn.logits, torch.cat(out.logits), atol=1e-4, rtol=0)


def test_the_second_turn_without_pruning_is_the_stock_model(stock: Any, tokenizer: Any) -> None:
    video = pixels(random_frames(3))
    first, second = converse(VideoLlavaEye(stock, tokenizer, video), QUESTIONS, None, steps=8)
    prefix = tokenizer("USER: " + "<video>" * 3 * (PATCHES + 1)).input_ids
    ids = [*prefix, *first.suffix, *first.generated, tokenizer.eos_token_id, *second.suffix, *second.generated]
    with torch.no_grad():
        logits = stock(input_ids=torch.tensor([ids]), pixel_values_videos=video[None]).logits[0, -9:-1]
    torch.testing.assert_close(second.logits, logits, atol=1e-4, rtol=0)


def test_the_neuron_shift_moves_each_frames_own_maximum(stock: Any) -> None:
    rule = Rule(lambda1=0.5, lambda2=1, cut=3, neurons=NEURONS)
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        stock.model.video_tower.encoder.layers[layer].mlp.fc2.register_forward_pre_hook(
            lambda _module, args, layer=layer: seen.__setitem__(layer, args[0])
        )
        for layer, _ in NEURONS
    ]
    together = look(stock.model, pixels(random_frames(3)), rule, -2)
    for hook in hooks:
        hook.remove()
    for layer, k in NEURONS:
        column_FN = seen[layer][:, :, k]
        assert (column_FN[:, 1:-1] == 0).all()
        assert (column_FN[:, 0] != 0).all()
        assert len(set(column_FN[:, -1].tolist())) == 3
    alone = [look(stock.model, pixels(random_frames(3))[i : i + 1], rule, -2) for i in range(3)]
    torch.testing.assert_close(together.scores, torch.cat([one.scores for one in alone]))
    registers = [one.register for one in alone if one.register is not None]
    torch.testing.assert_close(together.register, torch.stack(registers).mean(dim=0))


def test_thresholds_cut_at_both_stages(stock: Any, tokenizer: Any) -> None:
    rule = Rule(lambda1=1.3, lambda2=1.7, cut=3, neurons=NEURONS)
    for turn in converse(VideoLlavaEye(stock, tokenizer, pixels(random_frames(3))), QUESTIONS, rule, steps=1):
        assert 0 < turn.stage2.sum() < turn.stage1.sum() < turn.stage1.numel()
        assert not (turn.stage2 & ~turn.stage1).any()
