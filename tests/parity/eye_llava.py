"""The oracle's eye for LLaVA-1.5 and LLaVA-NeXT, and all that a test of them needs, by family.

Where a patch lands among tiles and newlines, the stock `pack_image_features` says itself, over features that carry
nothing but their index.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from occam.config import Pruning
from occam.engine.engine import Engine
from occam.tensors import PrefixState
from occam.types import FrameBatch
from tests.parity.harness import load
from tests.parity.oracle import Rule, Seen, Spoken, Token
from tests.parity.oracle_tower import Frames, look

NEWLINE, CLS = -1, -2
TEXTS = {
    "llama": ("USER: ", "{} ASSISTANT:", "USER: {} ASSISTANT:"),
    "mistral": ("[INST] ", "{} [/INST]", "[INST] {} [/INST]"),
}
"""By the decoder's type: what stands before the images, behind them, and behind an answer."""


class LlavaEye:
    """A stock model and images, each as pixels [F, 3, H, W] of its tower passes and its size."""

    def __init__(self, model: Any, tokenizer: Any, images: Sequence[tuple[Tensor, tuple[int, int]]]) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.images = images
        self.text_model = model.model.language_model
        self.head = model.lm_head
        self.end_id = tokenizer.eos_token_id
        self.before, self.first, self.next = TEXTS[model.config.text_config.model_type]

    def see(self, rule: Rule | None) -> Seen:
        """Prefix text, then every image as the stock model has it less what stage I dropped, and its newline."""
        embed = self.text_model.get_input_embeddings().weight
        tokens = [Token(embed[token], (at,)) for at, token in enumerate(self.tokenizer(self.before).input_ids)]
        position, sizes = len(tokens), list[int]()
        keeps, scores, references, registers = (list[Tensor]() for _ in range(4))
        for pixels, size in self.images:
            frames = self._look(pixels, rule)
            landing = self._landing(frames, size)
            for index in landing:
                token = self._token(frames, index, rule, patch=sum(len(keep) for keep in keeps))
                if token is not None:
                    tokens.append(token._replace(position=(position,)))
                position += 1
                if index >= 0:
                    keeps.append(frames.keep.flatten()[index, None])
                    scores.append(frames.scores.flatten()[index, None])
                    references.append(frames.reference[index // frames.keep.shape[1], None])
            rest, whole = sum(index >= 0 for index in landing), frames.keep.shape[1]
            sizes += [whole, rest - whole] if NEWLINE in landing else [rest]
            if frames.register is not None:
                registers += [frames.register] * len(pixels)
            for end in self._ids("\n"):
                tokens.append(Token(embed[end], (position,)))
                position += 1
        return Seen(
            tokens=tokens,
            end=position,
            register=torch.stack(registers).mean(dim=0, keepdim=True) if registers else None,
            keep=torch.cat(keeps),
            scores=torch.cat(scores),
            reference=torch.cat(references),
            sizes=sizes,
        )

    def say(self, question: str, first: bool) -> Spoken:
        """The turn's ids in the template."""
        template = self.first if first else self.next
        start = len(self._ids(template.split("{}")[0]))
        stop = start + len(self._ids(question))
        return Spoken(suffix=self._ids(template.format(question)), question=slice(start, stop))

    def _look(self, pixels: Tensor, rule: Rule | None) -> Frames:
        frames = look(self.model.model, pixels, rule, self.model.config.vision_feature_layer)
        if rule is None or rule.fault != "wrong tile's register":
            return frames
        reference = frames.reference.roll(1)
        return Frames(
            features=frames.features,
            register=frames.register,
            keep=frames.scores >= rule.lambda1 * reference[:, None],
            scores=frames.scores,
            reference=reference,
        )

    def _landing(self, frames: Frames, size: tuple[int, int]) -> list[int]:
        """For every token of the unpruned image: the patch's index among all tiles', or NEWLINE, or CLS."""
        passes, patches = frames.keep.shape
        select = self.model.config.vision_feature_select_strategy
        if self.model.config.model_type == "llava":
            return [CLS] * (select == "full") + list(range(patches))
        index = torch.arange(passes * patches).view(passes, patches, 1).float()
        newline = torch.tensor([float(NEWLINE)])
        packed, _ = self.model.pack_image_features([index], torch.tensor([size]), select, newline)
        return [int(value) for value in packed[0]]

    def _token(self, frames: Frames, index: int, rule: Rule | None, patch: int) -> Token | None:
        """The token that lands there, None where it is pruned."""
        if index == NEWLINE:
            pruned = rule is not None and rule.fault == "newline pruned"
            return None if pruned else Token(self.model.model.image_newline, ())
        if index == CLS:
            return Token(frames.features[0, 0], ()) if rule is None or rule.keep_cls else None
        tile, own = divmod(index, frames.keep.shape[1])
        return Token(frames.features[tile, 1 + own], (), patch=patch) if frames.keep[tile, own] else None

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


@dataclass(frozen=True)
class LlavaCase:
    """A checkpoint, its stock model (eager) and tokenizer."""

    folder: Path
    stock: Any
    tokenizer: Any

    @cached_property
    def engine(self) -> Engine:
        return load(self.folder)

    def eye(self, images: Sequence[FrameBatch]) -> LlavaEye:
        looks = [(self.engine.lm.pixels(image.frames), image.frames.shape[1:3]) for image in images]
        return LlavaEye(self.stock, self.tokenizer, looks)


def state_of(engine: Engine, images: Sequence[FrameBatch], pruning: Pruning) -> PrefixState:
    """A state of several images, each an append."""
    state = engine.begin(pruning)
    for image in images:
        state, _ = engine.append(state, image, pruning)
    return state
