"""Evidence says which of several images and videos each of its frames shows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from occam.config import NoPruning
from occam.types import FrameBatch
from services.answer_schemas import EvidenceBody
from services.messages import Reply
from tests.parity import checkpoint_qwen
from tests.parity.checkpoint_llava import random_image, write_llava_next
from tests.parity.harness import ask, image_of, load, see, video_of

VIDEO = video_of(checkpoint_qwen.random_frames(5))
IMAGE = image_of(checkpoint_qwen.random_frames(1)[0])
CASES: dict[str, tuple[Callable[[Path], Path], Sequence[FrameBatch], list[int]]] = {
    "two images, each whole and in tiles": (
        write_llava_next,
        [random_image(70, 100), random_image(70, 100)],
        [0, 0, 1, 1],
    ),
    "a video, an image, the same video": (
        checkpoint_qwen.write_checkpoint,
        [VIDEO, IMAGE, VIDEO],
        [0, 0, 0, 1, 2, 2, 2],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_frame_names_its_medium(tmp_path: Path, name: str) -> None:
    write, media, expected = CASES[name]
    engine, pruning = load(write(tmp_path)), NoPruning()
    reply = ask(engine, see(engine, media, pruning), ["what ?"], pruning, steps=1)[0]
    assert [frame.medium for frame in reply.answer.evidence.frames] == expected
    finished = SimpleNamespace(answer=reply.answer, turns=(reply.answer.turn,))
    body = EvidenceBody.of(cast(Reply, SimpleNamespace(finished=finished, drawable=False)))
    assert [frame.medium for frame in body.frames] == expected
    assert [span.medium for span in body.spans] == list(range(len(media)))
    assert sum(span.kept for span in body.spans) == sum(frame.kept for frame in body.frames)


def test_a_video_begun_behind_another_ones_end_is_a_medium_of_its_own(tmp_path: Path) -> None:
    later = FrameBatch(
        frames=VIDEO.frames, pts_seconds=VIDEO.pts_seconds + 60, indices=np.arange(120, 125), digest=VIDEO.digest
    )
    engine, pruning = load(checkpoint_qwen.write_checkpoint(tmp_path)), NoPruning()
    state = see(engine, [VIDEO, later], pruning)
    assert state.view_medium.tolist() == [0, 0, 0, 1, 1, 1]
    assert state.media == 2
