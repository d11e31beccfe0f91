"""What the engine asks of a model family: one protocol, whatever the tower and the decoder look like."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from occam.calibration import Calibration
from occam.config import RegisterMode, RegisterPlacement
from occam.models.decoder import Decoder
from occam.models.prompt import Prompt
from occam.registers import Neuron, TowerTrace
from occam.tensors import MediaTokens
from occam.types import FrameBatch, Framing, MediaKind


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What users and caches need to know of a loaded model.

    digest: SHA-256 of the weights; config_digest: SHA-256 of the configurations beside them (model and processors)
    text_digest: SHA-256 of tokenizer and template; frames: sampled by default
    media: what it takes; group: frames that the tower takes together; layers: decoder depth; cut: the paper's, where it
    names one for the family; max_positions: length of an unpruned conversation
    calibration: None where no artefact was found; framing: which part of a frame its patches cover
    """

    name: str
    family: str
    digest: str
    config_digest: str
    text_digest: str
    preprocessing: str
    frames: int
    media: tuple[MediaKind, ...]
    layers: int
    cut: int
    max_positions: int
    group: int = 1
    calibration: Calibration | None = None
    framing: Framing = field(default_factory=Framing)

    @property
    def calibrated(self) -> bool:
        """Whether strategy `occam` can run."""
        return self.calibration is not None


@dataclass(frozen=True, kw_only=True, eq=False)
class TowerOutput:
    """What a vision tower gives for one chunk of V views of P patches (for towers that merge patches, merged ones).

    scores: float32 [V, P], stage I's; register_scores: float32 [V], None without a register token
    features, register: the adapter's own, for its `compose`; planes, register_planes: the same for DeepStack levels
    keys: [V, P, H, D], the patches' at the block that scores; the last P features of a view are then its patches. None
    where patches cannot be merged, positions having several axes
    """

    scores: Tensor
    register_scores: Tensor | None
    features: Tensor
    register: Tensor | None
    planes: tuple[Tensor, ...] = ()
    register_planes: tuple[Tensor, ...] = ()
    keys: Tensor | None = None


class VideoLM(Protocol):
    """A video or image language model, opened at the places where pruning and caching need it.

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
    def prompt(self) -> Prompt:
        """Texts to token ids, as the family's template wants them."""
        ...

    def calibrated(self, calibration: Calibration) -> "VideoLM":
        """The same model with this calibration, its register neurons installed."""
        ...

    def batch_views(self, kind: MediaKind) -> int:
        """Views of every batch of the tower, which such chunks share; 0 where each is a batch of its own."""
        ...

    def encode(
        self, chunks: Sequence[FrameBatch], register: RegisterMode | None, placement: RegisterPlacement
    ) -> list[TowerOutput]:
        """What the tower gives of each chunk, all of one `grid`, preprocessed as the stock processor does.

        InvalidInput for a kind it has not.
        """
        ...

    def grid(self, media: FrameBatch) -> tuple[int, int]:
        """Rows and columns of the patches of a view, merged ones for towers that merge them."""
        ...

    def compose(self, media: FrameBatch, output: TowerOutput, keep_VP: Tensor, keep_cls: bool) -> MediaTokens:
        """What the language model gets of a chunk: the patches of bool `keep_VP`, projected, and their markers."""
        ...

    def shown(self, media: FrameBatch) -> Tensor:
        """bool [V, P], on the CPU: those of the patches in `scores` that the stock sequence has, padding being none."""
        ...

    def others(self, media: FrameBatch, keep_cls: bool) -> int:
        """Tokens of a chunk that are no patches, and that no stage drops; by its size alone, whatever it shows."""
        ...

    def trace(self, media: FrameBatch, neurons: tuple[Neuron, ...] | None) -> TowerTrace:
        """Run the tower with a trial set of register neurons and watch it; None runs without any register."""
        ...
