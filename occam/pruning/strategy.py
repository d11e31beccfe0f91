"""What the engine asks of a pruning strategy.

Legend: F frames, P patches of a frame, T evaluating text tokens, V visual tokens under test.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from occam.config import RegisterMode, RegisterPlacement
from occam.tensors import RetentionMask


@dataclass(frozen=True, kw_only=True, eq=False)
class TextEvidence:
    """Attention of the newest turn's text at the scoring layer, heads averaged, one softmax over the full row.

    rows_TV: float32, text token to visual token; register_T: float32, text token to register, None without one
    """

    rows_TV: Tensor
    register_T: Tensor | None


class Strategy(Protocol):
    """A pruning rule, ready to run; says what it needs of the tower, and where in the decoder it cuts."""

    @property
    def register(self) -> RegisterMode | None:
        """Where the reference comes from; None scores nothing in the tower."""
        ...

    @property
    def placement(self) -> RegisterPlacement:
        """Where the tower's register token enters."""
        ...

    @property
    def keep_cls(self) -> bool:
        """Whether CLS tokens go on to the language model."""
        ...

    def cut(self, layers: int) -> int:
        """Decoder layers that run before stage II, of `layers`; all of them where there is no stage II."""
        ...

    def stage1(self, scores_FP: Tensor, register_F: Tensor | None) -> RetentionMask:
        """Which patches of each frame go on; the mask is flat [F * P], its threshold one per patch."""
        ...

    def stage2(self, evidence: TextEvidence) -> RetentionMask:
        """Which visual tokens go on past the cut for this question."""
        ...
