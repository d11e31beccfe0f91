"""Keys and values of sequences that share a pass: each its own, ragged by layer, grown in place."""

import pytest
import torch

from occam.models.packing import Pack, SequenceKV


def block(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(2, tokens, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("room", [0, 1, 4, 100])
def test_a_sequence_holds_what_went_in_whatever_its_room(room: int) -> None:
    begun = [block(5, 0), block(5, 1)]
    sequence = SequenceKV(3, room, begun, [-keys for keys in begun])
    parts: dict[int, list[torch.Tensor]] = {0: [begun[0]], 1: [begun[1]], 2: []}
    for step, (layer, tokens) in enumerate([(0, 1), (2, 4), (0, 3), (2, 1), (2, 1), (1, 0), (0, 1)]):
        new = block(tokens, 10 + step)
        parts[layer].append(new)
        sequence.extend(layer, new, -new)
    for layer, held in parts.items():
        whole = torch.cat(held, dim=1)
        assert sequence.keys(layer).equal(whole)
        assert sequence.values(layer).equal(-whole)
        assert sequence.length(layer) == whole.shape[1]
    assert begun[0].equal(block(5, 0)), "what it began with is as it was"


def test_within_its_room_a_layer_does_not_move() -> None:
    sequence = SequenceKV(1, 3, [block(2, 0)], [block(2, 1)])
    place = sequence.keys(0).data_ptr()
    for step in range(3):
        sequence.extend(0, block(1, step), block(1, step))
    assert sequence.keys(0).data_ptr() == place
    sequence.extend(0, block(1, 9), block(1, 9))
    assert sequence.keys(0).data_ptr() != place


def test_a_layer_that_nothing_went_through_is_a_fault() -> None:
    with pytest.raises(ValueError, match="layer 1"):
        SequenceKV(2, 0, [block(1, 0)], [block(1, 0)]).keys(1)


def test_masks_say_what_the_kernel_does_not_know() -> None:
    pack = Pack([], [])
    device = torch.device("cpu")
    assert pack.mask(1, 9, device) is None
    assert pack.mask(4, 4, device) is None
    mask = pack.mask(2, 4, device)
    assert mask is not None
    assert mask[0, 0].tolist() == [[True, True, True, False], [True, True, True, True]]
    assert pack.mask(2, 4, device) is mask
