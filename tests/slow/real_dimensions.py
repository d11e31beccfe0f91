"""Random weights of two real checkpoints' dimensions, and a day in their life: registers, calibration, two questions.

python -m tests.slow.real_dimensions [--device cuda] [--layers 32] prints tokens and seconds of every stage. Files lie
as those of LanguageBind/Video-LLaVA-7B-hf and Qwen/Qwen3-VL-8B-Instruct do, in shards, in bfloat16; only the decoder's
depth is cut down where memory asks for it, and the vocabulary's words are a test's. Needs torch and transformers, no
Ray, decoder or Redis.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from occam.calibration import ARTEFACT_NAME
from occam.config import EngineConfig, NoPruning, Pruning, SamplingParams
from occam.engine import Engine
from occam.kv.codec import decode, encode
from occam.stats import StageStats
from occam.types import Answer, FrameBatch
from pipelines.evaluation.calibrate import Plan, calibrate, find_registers
from pipelines.evaluation.clips import state_of
from pipelines.evaluation.material import Sample
from pipelines.evaluation.premise import described
from tests.parity import checkpoint, checkpoint_qwen

SHARD = "1GB"
QUESTIONS = ("what colour is the ball ?", "where does it go then ?")
T = TypeVar("T")
SAMPLING = SamplingParams(max_new_tokens=4)


def write_video_llava_7b(folder: Path, layers: int) -> None:
    """CLIP-L/14 at 224 pixels, twice, and a Vicuna-7B of so many layers."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
    )
    checkpoint.write_checkpoint(folder)
    small = json.loads((folder / "config.json").read_text())
    config = VideoLlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=small["image_token_index"],
        video_token_index=small["video_token_index"],
    )
    _replace(folder, lambda: VideoLlavaForConditionalGeneration(config))
    pixels = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    _edit(folder / "preprocessor_config.json", pixels)


def write_qwen3_vl_8b(folder: Path, layers: int) -> None:
    """The vision tower of 27 blocks with three DeepStack levels, and a Qwen3-8B of so many layers."""
    checkpoint_qwen.write_checkpoint(folder)
    small = json.loads((folder / "config.json").read_text())
    config = Qwen3VLConfig(
        vision_config={
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 4096,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
        text_config={
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5_000_000,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        },
        **{name: small[name] for name in ("image_token_id", "video_token_id", "vision_start_token_id")},
        vision_end_token_id=small["vision_end_token_id"],
    )
    _replace(folder, lambda: Qwen3VLForConditionalGeneration(config))
    _edit(folder / "preprocessor_config.json", {"patch_size": 16, "size": _edges(65536, 16777216)})
    video = {"patch_size": 16, "size": _edges(4096, 25165824), "max_video_tokens": 768}
    _edit(folder / "video_preprocessor_config.json", video)


FAMILIES: dict[str, Callable[[Path, int], None]] = {
    "Video-LLaVA-7B": write_video_llava_7b,
    "Qwen3-VL-8B": write_qwen3_vl_8b,
}


def live(folder: Path, device: str, frames: int, say: Callable[[str], None] = print) -> list[Answer]:
    """Find registers, calibrate, ask, and ask on over a state out of the codec; every answer, in that order.

    frames: of the two generated clips; the follow-up's answer must come out the same cold and warm, AssertionError else
    """
    config = EngineConfig(model=str(folder), device=device, dtype="bfloat16")
    samples = [Sample.of(_noise(frames, seed), QUESTIONS[:1]) for seed in (0, 1)]
    calibration, found = _timed(say, "occam registers", lambda: find_registers(config, Plan(), lambda _: samples))
    say(described(found))
    calibration.save(folder / ARTEFACT_NAME)
    report = _timed(say, "occam calibrate", lambda: calibrate(config, Plan(), lambda _: samples))
    say(str(report))
    report.calibration.save(folder / ARTEFACT_NAME)
    engine = _timed(say, "load", lambda: Engine.load(config))
    _converse(engine, samples[0].frames(), engine.pruning(), lambda _: None)  # the first run pays for what is lazy
    answers = []
    for pruning in (NoPruning(), engine.pruning()):
        say(f"\nstrategy {pruning.name}")
        answers += _converse(engine, samples[0].frames(), pruning, say)
    return answers


def _converse(engine: Engine, frames: FrameBatch, pruning: Pruning, say: Callable[[str], None]) -> list[Answer]:
    with _clock(say, "state from frames"):
        state = state_of(engine, frames, pruning)
    first = engine.ask(state, QUESTIONS[0], pruning, SAMPLING)
    _stages(say, "question", first)
    with _clock(say, "state from bytes"):
        warm = decode(*encode(state))
    second = engine.ask(engine.replay(warm, [first.turn]), QUESTIONS[1], pruning, SAMPLING)
    _stages(say, "follow-up", second)
    cold = engine.ask(engine.replay(state_of(engine, frames, pruning), [first.turn]), QUESTIONS[1], pruning, SAMPLING)
    assert cold.turn == second.turn
    assert [f.stage2.tolist() for f in cold.evidence.frames] == [f.stage2.tolist() for f in second.evidence.frames]
    return [first, second]


def _stages(say: Callable[[str], None], name: str, answer: Answer) -> None:
    tokens = answer.visual_tokens
    say(f"{name}: {tokens.encoded} patches encoded, {tokens.stage1} after stage I, {tokens.stage2} after stage II")
    for stage in answer.stats:
        say(f"  {_line(stage)}")


def _line(stage: StageStats) -> str:
    return f"{stage.stage:<14}{stage.seconds:8.3f} s  {stage.tokens_in:>6} tokens in, {stage.tokens_out} out"


def _timed(say: Callable[[str], None], name: str, run: Callable[[], T]) -> T:
    with _clock(say, name):
        return run()


@contextmanager
def _clock(say: Callable[[str], None], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    say(f"{name}: {time.perf_counter() - started:.2f} s")


def _noise(count: int, seed: int) -> FrameBatch:
    return FrameBatch(
        frames=checkpoint_qwen.random_frames(count, 240, 320, seed),
        pts_seconds=np.arange(count) / 2,
        indices=np.arange(count),
        digest=f"noise-{seed}",
    )


def _replace(folder: Path, build: Callable[[], PreTrainedModel]) -> None:
    """A model of other dimensions in the place of the small one; without any artefact."""
    (folder / ARTEFACT_NAME).unlink()
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        build().save_pretrained(folder, max_shard_size=SHARD)
    finally:
        torch.set_default_dtype(torch.float32)


def _edit(path: Path, changes: dict[str, object]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _edges(shortest: int, longest: int) -> dict[str, int]:
    return {"shortest_edge": shortest, "longest_edge": longest}


def main() -> None:
    """Both families, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.slow.real_dimensions", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=4, help="of the decoder; the real ones have 32 and 36 (4)")
    parser.add_argument("--frames", type=int, default=8)
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor()
    print(f"{device}, torch {torch.__version__}, bfloat16, {options.layers} decoder layers, {options.frames} frames")
    for name, write in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n== {name}")
            _timed(print, "write", lambda write=write, folder=folder: write(Path(folder), options.layers))
            live(Path(folder), options.device, options.frames)


if __name__ == "__main__":
    main()
