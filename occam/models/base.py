"""What the engine asks of a model family: one protocol, whatever the tower and the decoder look like."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from occam.calibration import Calibration
from occam.config import RegisterMode, RegisterPlacement
from occam.models.clip_tower import TowerOutput
from occam.models.decoder import Decoder
from occam.registers import WatchedTower
from occam.types import FrameBatch


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What users and caches need to know of a loaded model.

    digest: SHA-256 of the weights; text_digest: SHA-256 of tokenizer and template; frames: sampled by default
    grid: patch rows and columns of a frame; layers: decoder depth; max_positions: length of an unpruned conversation
    calibration: None where no artefact was found
    """

    name: str
    family: str
    digest: str
    text_digest: str
    preprocessing: str
    frames: int
    grid: tuple[int, int]
    layers: int
    max_positions: int
    calibration: Calibration | None = None

    @property
    def calibrated(self) -> bool:
        """Whether strategy `occam` can run."""
        return self.calibration is not None


class VideoLM(Protocol):
    """A video language model, opened at the places where pruning and caching need it.

    The adapter owns the decoder's layer loop (`decoder.run_layers` is the only primitive) and the prompt template.
    """

    @property
    def info(self) -> ModelInfo:
        """What is loaded."""
        ...

    @property
    def decoder(self) -> Decoder:
        """The language model's layers."""
        ...

    @property
    def tower(self) -> WatchedTower:
        """The vision tower, for the search for register neurons."""
        ...

    def calibrated(self, calibration: Calibration) -> "VideoLM":
        """The same model with this calibration, its register neurons installed."""
        ...

    def preprocess(self, frames: FrameBatch) -> Tensor:
        """Pixels [T, 3, H, W] in the model's dtype, equal to the stock processor's."""
        ...

    def encode(self, pixels: Tensor, register: RegisterMode | None, placement: RegisterPlacement) -> TowerOutput:
        """Tower features and scores of one chunk."""
        ...

    def project(self, features: Tensor) -> Tensor:
        """Tower features [..., C_vision] into the language model's space [..., C]."""
        ...

    def prefix_ids(self, system: str) -> list[int]:
        """Token ids in front of the media of a conversation."""
        ...

    def turn_ids(self, question: str, first: bool) -> tuple[list[int], tuple[int, int]]:
        """Token ids behind the media (first turn) or the last turn; and where in them the question itself stands."""
        ...

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer's text, as they follow the generation prompt."""
        ...

    @property
    def frame_size(self) -> int:
        """Edge in pixels of the square the model sees of a frame."""
        ...

    @property
    def placeholder_id(self) -> int:
        """The id that stands for a visual token."""
        ...

    @property
    def end_id(self) -> int:
        """The id that ends a turn."""
        ...

    def text(self, ids: list[int]) -> str:
        """Plain text of generated ids, special tokens left out."""
        ...
