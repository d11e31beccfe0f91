"""Video-LLaVA (arXiv 2311.10122) over the stock `transformers` classes, pruned and cached by the engine.

Stock layout of a first turn: `USER: <video>\\n{question} ASSISTANT:`, the placeholder standing for T x (1 + P) tokens,
CLS first in every frame. The tower is CLIP's, its features those of block -2.
"""

from pathlib import Path

from transformers import VideoLlavaForConditionalGeneration

from occam.config import EngineConfig
from occam.models.checkpoint import load_stock
from occam.models.compact import Layout
from occam.models.llava_family import LlavaFamily
from occam.models.preprocess import ClipPixels
from occam.models.prompt import VICUNA
from occam.types import FrameBatch


class VideoLlava(LlavaFamily):
    """Videos of single frames, their CLS tokens among the stock model's visual tokens."""

    media = ("video",)
    frames = 8

    @classmethod
    def load(cls, name: str, directory: Path, digest: str, config: EngineConfig) -> "VideoLlava":
        """Load a checkpoint directory in the stock layout; InvalidInput where its shape is not supported."""
        model = load_stock(VideoLlavaForConditionalGeneration, directory, config)
        return cls.of(
            model,
            model.model.video_tower,
            ClipPixels.load(directory, "video"),
            name=name,
            directory=directory,
            digest=digest,
            placeholder="<video>",
            template=VICUNA,
        )

    def layout(self, media: FrameBatch, side: int) -> Layout:
        """Frame behind frame, CLS first in each."""
        return Layout.of_frames(len(media), side, with_cls=True)
