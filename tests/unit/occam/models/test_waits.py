"""Nothing on the way through a tower or a recorded step reads a value, which a GPU would have to be waited for.

Tensors on the device "meta" have none: whatever asks for one fails, as does whatever mixes them with the CPU's.
"""

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from occam.config import SamplingParams
from occam.engine.sampling import choose, draw, seeded
from occam.models.clip_tower import ClipTower
from occam.models.decoder import Decoder
from occam.models.qwen_tower import QwenTower
from occam.models.slots import Slots
from occam.transfer import to_device, upload, wait_for
from tests.parity import checkpoint, checkpoint_qwen
from tests.parity.harness import load

META = torch.device("meta")
WRITE = {"video_llava": checkpoint.write_checkpoint, "qwen3_vl": checkpoint_qwen.write_checkpoint}


@pytest.fixture(scope="module", params=WRITE)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    return load(WRITE[request.param](tmp_path_factory.mktemp(request.param))).lm


def without_values(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(META)


def test_a_step_in_slots_reads_no_value(lm: object) -> None:
    own = lm.decoder
    decoder = Decoder(without_values(own.model), without_values(own.head), own.rotate, own.axes, own.levels)
    slots = Slots(decoder, 4, 1 << 30, lambda run: run)
    slots._lay_out(4, [256] * own.layers)
    logits = slots._step(2, [256, *[128] * (own.layers - 1)])
    assert logits.device == META
    assert logits.shape == (2, own.head.out_features)


class NothingIsSent(TorchDispatchMode):
    """Fails where numbers of the host go to the device, which no recording could do again."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
        result = function(*args, **(kwargs or {}))
        made = [each for each in tree_flatten(result)[0] if isinstance(each, torch.Tensor)]
        here, there = (any((each.device == META) is there for each in given + made) for there in (False, True))
        assert not (here and there), f"{function} mixes devices"
        return result


def test_what_is_sent_is_noticed() -> None:
    there = torch.zeros(3, device=META)
    with pytest.raises(AssertionError, match="_to_copy"), NothingIsSent():
        torch.tensor([1]).to(META)
    with pytest.raises(AssertionError, match="index_put"), NothingIsSent():
        there.index_put_((torch.zeros(1, dtype=torch.int64, device=META),), torch.tensor(0.0))
    with NothingIsSent():
        there[:2] += 1


def test_a_tower_reads_and_sends_no_value(lm: object) -> None:
    vision = without_values(lm.tower.vision)
    if isinstance(lm.tower, ClipTower):
        tower = ClipTower(vision, lm.tower.feature_layer, lm.tower.neurons)
        edge = vision.config.image_size
        pixels = torch.empty(3, 3, edge, edge, device=META)
        with NothingIsSent():
            output = tower.encode(pixels, "neurons")
    else:
        tower = QwenTower(vision, lm.tower.neurons)
        width = vision.patch_embed.proj.weight[0].numel()
        pixels = torch.empty(3 * 24, width, device=META)
        with NothingIsSent():
            output = tower.encode(pixels, (3, 4, 6), "neurons")
    assert tower.neurons
    assert {output.scores.device, output.features.device, output.register.device} == {META}


def test_only_a_gpu_is_waited_for() -> None:
    with mock.patch("torch.cuda.synchronize") as synchronize:
        wait_for("cpu")
        wait_for("cuda:1")
    synchronize.assert_called_once_with("cuda:1")


def test_what_is_sent_arrives_as_it_was() -> None:
    sent = torch.randn(5)
    cpu = torch.device("cpu")
    assert to_device(sent, cpu).equal(sent)
    assert to_device(sent, cpu, torch.bfloat16).equal(sent.bfloat16())
    assert upload([3, 1], cpu).tolist() == [3, 1]
    assert upload([], cpu).dtype == torch.int64


def test_a_gpu_is_sent_pinned_memory_and_not_waited_for() -> None:
    sent = mock.Mock(dtype=torch.float32)
    there = to_device(sent, torch.device("cuda"), torch.bfloat16)
    sent.to.assert_called_once_with(torch.bfloat16)
    pinned = sent.to.return_value.pin_memory.return_value
    pinned.to.assert_called_once_with(torch.device("cuda"), non_blocking=True)
    assert there is pinned.to.return_value


@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_drawn_is_what_torchs_own_draw_gives(top_p: float) -> None:
    """`torch.multinomial`'s, whose chance would lie where the logits do."""
    for seed in range(40):
        params = SamplingParams(temperature=0.8, top_p=top_p, seed=seed)
        logits = 3 * torch.randn(50, generator=torch.Generator().manual_seed(seed))
        shares, order = torch.softmax(logits / 0.8, dim=-1).sort(descending=True)
        nucleus = shares.cumsum(0) - shares < top_p
        expected = order[torch.multinomial(shares * nucleus, 1, generator=seeded(params))]
        assert draw(logits[None], [params], [seeded(params)]).tolist() == [int(expected)]


def test_draws_of_many_are_those_of_each_alone_and_wait_once() -> None:
    kinds = [(0.0, 1.0), (0.8, 0.9), (0.0, 0.5), (2.0, 1.0), (0.3, 0.4)]
    params = [SamplingParams(temperature=heat, top_p=top, seed=seed) for seed, (heat, top) in enumerate(3 * kinds)]
    logits = 3 * torch.randn(len(params), 500, generator=torch.Generator().manual_seed(0))
    together, alone = ([seeded(own) for own in params] for _ in range(2))
    for _ in range(3):
        each = zip(logits, params, alone, strict=True)
        expected = [choose(row[None], [own], [chance])[0] for row, own, chance in each]
        assert choose(logits, params, together) == expected
        assert expected != logits.argmax(dim=-1).tolist()
    with mock.patch.object(torch.Tensor, "tolist", autospec=True, return_value=[1]) as read:
        choose(logits, params, together)
    assert read.call_count == 1
    hot = params[1:2]
    assert draw(logits[:1].to(META), hot, [seeded(hot[0])]).device == META, "no value is read on the way"
