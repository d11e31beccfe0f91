"""Generation ends where the checkpoint's generation config has stock `generate` end, at any of several tokens."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import GenerationConfig

from occam.config import NoPruning, SamplingParams
from tests.parity import checkpoint, checkpoint_qwen
from tests.parity.harness import ask, build, load

FRAMES = {"checkpoint": checkpoint.random_frames(2), "qwen_checkpoint": checkpoint_qwen.random_frames(2)}
OFF = NoPruning()


@pytest.mark.parametrize("name", sorted(FRAMES))
def test_any_listed_token_ends_an_answer_and_is_none_of_it(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(name)
    free = load(folder)
    ids = ask(free, build(free, FRAMES[name], OFF), ["what is"], OFF, 8)[0].answer.turn.generated_ids
    stop = next(token for token in ids[2:] if token not in ids[:2])
    at, end = ids.index(stop), free.lm.prompt.end_id
    shutil.copytree(folder, tmp_path / "stops")
    config = tmp_path / "stops" / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": [end, stop]}))
    assert GenerationConfig.from_pretrained(config.parent).eos_token_id == [end, stop]
    engine = load(config.parent)
    state = build(engine, FRAMES[name], OFF)
    answer = engine.ask(state, "what is", OFF, SamplingParams(max_new_tokens=8))
    assert (answer.finish_reason, answer.completion_tokens) == ("stop", at + 1)
    assert (answer.turn.generated_ids, answer.turn.closing_ids) == (ids[:at], (end,))
    assert engine.replay(state, [answer.turn]).ids[-1] == end
