"""Answers in int8 beside those that are exact: one question at a time, and what all of them come to.

Logits are compared as long as the texts are the same, and at the token where they part.
"""

import statistics
from dataclasses import dataclass

from occam.types import Answer
from pipelines.evaluation.accuracy import is_right
from tests.bench.flips import Asked, kept_margin
from tests.bench.report import Table


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One question on both sides.

    exact, int8: whether the answer was right; text: whether the texts differ
    kept: patches that the exact side kept; flipped: those that one side alone kept
    distance: the largest of a flipped patch from its threshold, in s_r; None where none flipped
    logits: the largest difference of two logits
    """

    exact: bool
    int8: bool
    text: bool
    kept: int
    flipped: int
    distance: float | None
    logits: float


def compared(answers: list[Answer], sides: list[Asked], truth: str, lambda2: float) -> Pair:
    """The exact side's answer beside the other's, with the logits of both."""
    exact, int8 = answers
    distances, parted = [0.0], False
    for place, (one, other) in enumerate(zip(*(side.logits for side in sides), strict=False)):
        if not parted:
            distances.append(float((one - other).abs().max()))
        parted = parted or exact.turn.generated_ids[place] != int8.turn.generated_ids[place]
    return Pair(
        exact=is_right(exact.text, truth),
        int8=is_right(int8.text, truth),
        text=exact.turn != int8.turn,
        kept=sum(frame.kept for frame in exact.evidence.frames),
        flipped=sum(
            int((one.stage2 != other.stage2).sum())
            for one, other in zip(exact.evidence.frames, int8.evidence.frames, strict=True)
        ),
        distance=kept_margin(exact, int8, lambda2),
        logits=max(distances),
    )


def sides_table(title: str, pairs: list[Pair], what: str, nbytes: tuple[float, float]) -> Table:
    """Both sides by themselves, with the bytes that `what` takes on each."""
    right = [100 * statistics.mean(values) for values in ([p.exact for p in pairs], [p.int8 for p in pairs])]
    return Table(
        title=title,
        columns=("", "exact", "int8", "int8 / exact"),
        rows=(
            ("answered right, %", *right, right[1] / right[0]),
            (f"bytes of {what}", *nbytes, nbytes[1] / nbytes[0]),
        ),
    )


def differences_table(pairs: list[Pair]) -> Table:
    """How many questions int8 changed, and how much."""
    counts = {
        "another text": sum(pair.text for pair in pairs),
        "another kept set": sum(pair.flipped > 0 for pair in pairs),
        "right where exact alone": sum(pair.exact > pair.int8 for pair in pairs),
        "right in int8 alone": sum(pair.int8 > pair.exact for pair in pairs),
    }
    kept, flipped = (statistics.mean(values) for values in ([p.kept for p in pairs], [p.flipped for p in pairs]))
    distance = max((pair.distance for pair in pairs if pair.distance is not None), default=0.0)
    return Table(
        title="int8 against exact",
        columns=("", "questions", "%"),
        rows=tuple((kind, count, 100 * count / len(pairs)) for kind, count in counts.items()),
        note=f"Patches that one side alone kept: {flipped:.3g} a question, of {kept:.3g} kept; at most {distance:.2e} "
        f"of s_r from the threshold. Largest difference of a logit: {max(pair.logits for pair in pairs):.3g}.",
    )
