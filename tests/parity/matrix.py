"""The prompts that pruning off is compared over, and what the stock processors make of them.

Media stand between two texts, which is the one order that the engine has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from occam.types import FrameBatch
from tests.parity import checkpoint, checkpoint_qwen
from tests.parity.checkpoint_llava import random_image, write_llava, write_llava_next
from tests.parity.harness import QUESTIONS
from tests.parity.stock_processors import process

SYSTEM = "what is the ball"
WRITERS: dict[str, Callable[[Path], Path]] = {
    "video_llava": checkpoint.write_checkpoint,
    "llava": write_llava,
    "llava full": lambda folder: write_llava(folder, "full"),
    "next llama": write_llava_next,
    "next mistral": lambda folder: write_llava_next(folder, "mistral"),
    "qwen3_vl": checkpoint_qwen.write_checkpoint,
    "qwen3_vl_moe": lambda folder: checkpoint_qwen.write_checkpoint(folder, experts=4),
}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    media: Sequence[FrameBatch]
    system: str = ""
    question: str = QUESTIONS[0]


def video(count: int, height: int, width: int, fps: float = 2.0, step: int = 1) -> FrameBatch:
    """Every `step`-th frame of a video of `fps`."""
    indices = step * np.arange(count)
    frames = checkpoint_qwen.random_frames(count, height, width, seed=count)
    return FrameBatch(frames=frames, pts_seconds=indices / fps, indices=indices, digest="0" * 64)


def image(height: int, width: int) -> FrameBatch:
    return random_image(height, width, seed=height)


def images(*sizes: tuple[int, int], system: str = "") -> Prompt:
    return Prompt(media=[image(*size) for size in sizes], system=system)


MATRIX: dict[str, dict[str, Prompt]] = {
    "video_llava": {
        "a frame": Prompt(media=[video(1, 56, 56)]),
        "2 frames": Prompt(media=[video(2, 40, 150)]),
        "3 frames": Prompt(media=[video(3, 190, 33)], system=SYSTEM),
        "16 frames": Prompt(media=[video(16, 57, 55)]),
        "two videos": Prompt(media=[video(2, 70, 101), video(2, 33, 60)], system=SYSTEM),
    },
    "llava": {
        "wide": images((40, 150)),
        "tall": images((190, 33)),
        "two images": images((70, 100), (150, 33), system=SYSTEM),
    },
    "llava full": {"tiny": images((2, 3))},
    "next llama": {
        "wide": images((40, 150)),
        "tall": images((190, 33)),
        "tiny": images((2, 3)),
        "square": images((56, 56)),
        "large": images((201, 303)),
        "thread": images((1, 190)),
        "two images": images((70, 100), (150, 33)),
        "two images behind a text": images((70, 100), (150, 33), system=SYSTEM),
    },
    "next mistral": {
        "large": images((201, 303)),
        "two images": images((70, 100), (150, 33), system=SYSTEM),
    },
    "qwen3_vl": {
        "2 frames": Prompt(media=[video(2, 48, 64)]),
        "3 frames": Prompt(media=[video(3, 96, 40, fps=29.97, step=7)]),
        "16 frames": Prompt(media=[video(16, 30, 100, fps=23.976, step=13)], system="what is the ball ?\n"),
        "wide": images((20, 130)),
        "tall": images((150, 33), system="system"),
        "square": Prompt(media=[image(64, 64)], question="\n\n? > what"),
        "two images": images((48, 64), (80, 31), system="user\n"),
        "image and video": Prompt(media=[image(40, 40), video(5, 40, 56)]),
    },
    "qwen3_vl_moe": {
        "image and video": Prompt(media=[image(40, 40), video(5, 40, 56)], system=SYSTEM),
    },
}
CELLS = [(model, name) for model, prompts in MATRIX.items() for name in prompts]
BATCHES: dict[str, list[Prompt]] = {
    "video_llava": [Prompt(media=[video(2, 56, 56)], question="what ?"), Prompt(media=[video(2, 40, 150)])],
    "llava": [Prompt(media=[image(70, 100)], question="what ?"), Prompt(media=[image(150, 33)])],
    "next llama": [Prompt(media=[image(70, 100)], question="what ?"), Prompt(media=[image(150, 33)])],
    "qwen3_vl": [Prompt(media=[video(2, 48, 64)]), Prompt(media=[video(3, 96, 40)], question="what ?")],
    "qwen3_vl_moe": [Prompt(media=[video(2, 48, 64)]), Prompt(media=[video(3, 96, 40)], question="what ?")],
}
"""Two prompts of different lengths."""


Inputs = dict[str, Any]
"""Keywords of a stock model's call."""


def stock_inputs(folders: Mapping[str, Path]) -> dict[tuple[str, str], Inputs]:
    """By model and prompt's name (or "batch"), what the stock processors of the checkpoints make of it."""
    jobs = {(model, name): [MATRIX[model][name]] for model, name in CELLS}
    jobs |= {(model, "batch"): prompts for model, prompts in BATCHES.items()}
    made = process([(folders[model], _call(model, prompts)) for (model, _), prompts in jobs.items()])
    for (model, _), prompts, inputs in zip(jobs, jobs.values(), made, strict=True):
        if model.startswith("qwen"):
            videos = sum(media.kind == "video" for prompt in prompts for media in prompt.media)
            _strip(inputs, AutoTokenizer.from_pretrained(folders[model]), videos)
    return dict(zip(jobs, made, strict=True))


def following(model: str, question: str) -> str:
    """What stands behind an answer's text: what ends it, and the next turn."""
    if model.startswith("qwen"):
        return f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return f"</s>[INST] {question} [/INST]" if model == "next mistral" else f"</s>USER: {question} ASSISTANT:"


def _call(model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The keywords of the stock processor's call."""
    media = [media for prompt in prompts for media in prompt.media]
    videos, pictures = ([each for each in media if each.kind == kind] for kind in ("video", "image"))
    call: dict[str, Any] = {"text": [_text(model, prompt) for prompt in prompts]}
    if len(prompts) > 1:
        call |= {"padding": True, "padding_side": "left"}
    if pictures:
        call["images"] = [torch.from_numpy(each.frames[0]).permute(2, 0, 1) for each in pictures]
        call["input_data_format"] = "channels_first"
    if videos:
        call["videos"] = [torch.from_numpy(each.frames).permute(0, 3, 1, 2) for each in videos]
    if videos and model.startswith("qwen"):
        call |= {"do_sample_frames": False, "cap_pixels_per_frame": True}
        call["video_metadata"] = [
            {
                "fps": float(each.indices[-1] / each.pts_seconds[-1]),
                "frames_indices": each.indices.tolist(),
                "total_num_frames": int(each.indices[-1]) + 1,
            }
            for each in videos
        ]
    return call


def _text(model: str, prompt: Prompt) -> str:
    """The documented stock form: media between the two texts, a newline behind every image of the LLaVAs."""
    system, question = prompt.system, prompt.question
    if model.startswith("qwen"):
        media = "".join(f"<|vision_start|><|{each.kind}_pad|><|vision_end|>" for each in prompt.media)
        before = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
        return f"{before}<|im_start|>user\n{media}{question}<|im_end|>\n<|im_start|>assistant\n"
    media = "<video>" * len(prompt.media) + "\n" if model == "video_llava" else "<image>\n" * len(prompt.media)
    if model == "next mistral":
        return (f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else "") + f"[INST] {media}{question} [/INST]"
    return (f"{system} " if system else "") + f"USER: {media}{question} ASSISTANT:"


def _strip(inputs: Inputs, tokenizer: Any, videos: int) -> None:
    """Take out the pair of vision tokens that Qwen3-VL's stock processor leaves round a whole video."""
    ids, kinds = inputs["input_ids"], inputs["mm_token_type_ids"]
    start, end = tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    opens_nothing = (ids == start) & (kinds.roll(-1, dims=1) == 0)
    closes_nothing = (ids == end) & (ids.roll(1, dims=1) == end)
    outer = opens_nothing | closes_nothing
    assert int(outer.sum()) == 2 * videos
    for name in ("input_ids", "mm_token_type_ids", "attention_mask"):
        inputs[name] = inputs[name][~outer].view(len(ids), -1)
