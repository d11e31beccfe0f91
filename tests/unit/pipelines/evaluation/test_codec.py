"""H.264 and back: as many frames, at the times asked for, looking much the same."""

import av
import numpy as np
import pytest

from pipelines.evaluation.codec import read_mp4, through_h264, write_mp4
from pipelines.evaluation.renderer import SceneConfig, draw_scene, render


@pytest.mark.parametrize("frames", [1, 3, 8, 17])
def test_round_trip_keeps_the_frames(tmp_path, frames):
    clip = render(draw_scene(1, SceneConfig(frames=frames)), 128)
    write_mp4(tmp_path / "clip.mp4", clip, fps=1)
    back = read_mp4(tmp_path / "clip.mp4")
    assert back.shape == clip.shape
    differences = np.abs(back.astype(int) - clip).mean(axis=(1, 2, 3))
    assert differences.max() < 4


def test_the_file_is_h264_with_the_frames_at_their_seconds(tmp_path):
    write_mp4(tmp_path / "clip.mp4", render(draw_scene(1), 64), fps=2)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert [float(frame.time) for frame in container.decode(video=0)] == [i / 2 for i in range(8)]


def test_a_higher_crf_loses_more():
    clip = render(draw_scene(2), 96)
    fine, coarse = (np.abs(through_h264(clip, crf).astype(int) - clip).mean() for crf in (10, 40))
    assert fine < coarse
