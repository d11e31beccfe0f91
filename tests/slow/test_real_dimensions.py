"""Real checkpoints' dimensions, in shards and bfloat16: `make test ARGS='-m slow'`; minutes and gigabytes."""

from pathlib import Path

import pytest

from tests.real_checkpoints import FAMILIES
from tests.slow.real_dimensions import live

# of 320 x 240 pixels: 256 CLIP patches a frame, or 8 x 10 merge groups for each two frames
ENCODED = {"Video-LLaVA-7B": 2 * 256, "Qwen3-VL-8B": 80}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_of_real_dimensions_is_calibrated_asked_and_asked_on(name: str, tmp_path: Path) -> None:
    FAMILIES[name].write(tmp_path, 3)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    unpruned, _, pruned, follow_up = live(tmp_path, "cpu", frames=2)
    assert unpruned.visual_tokens.encoded == unpruned.visual_tokens.stage2 == ENCODED[name]
    for answer in (pruned, follow_up):
        assert ENCODED[name] == answer.visual_tokens.encoded > answer.visual_tokens.stage2 > 0
