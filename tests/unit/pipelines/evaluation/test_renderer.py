"""The renderer: same seed same clip, truth that the pixels confirm, and scenes that obey their configuration."""

import numpy as np
import pytest

from pipelines.evaluation.renderer import BUSY, COLORS, EMPTY, SHAPES, SIZES, SceneConfig, draw_scene, render

SEEDS = range(1_000_000, 1_000_030)


def test_a_seed_gives_one_clip():
    first, again, other = (render(draw_scene(seed), 96) for seed in (7, 7, 8))
    assert first.shape == (8, 96, 96, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_the_scene_does_not_depend_on_the_side():
    for seed in range(5):
        scene = draw_scene(seed, SceneConfig(clutter=(0, 0)))
        small = render(scene, 96).astype(float)
        large = render(scene, 384).astype(float).reshape(8, 96, 4, 96, 4, 3).mean(axis=(2, 4))
        assert np.abs(small - large).mean() < 8


def test_pixels_inside_an_object_have_its_color_and_only_while_it_is_visible():
    for seed in SEEDS:
        scene = draw_scene(seed)
        frames = render(scene, 96).astype(int)
        for item in scene.objects:
            covers = scene.patch_cover(item, 96, samples=2)
            assert covers[: item.start].sum() == covers[item.stop :].sum() == 0
            for frame in range(item.start, item.stop):
                shown = frames[frame][covers[frame] > 0.999]
                assert np.abs(shown.mean(axis=0) - COLORS[item.color]).max() <= 16


def test_boxes_enclose_what_is_drawn():
    for seed in SEEDS:
        scene = draw_scene(seed)
        for index, item in enumerate(scene.objects):
            boxes = scene.boxes(index) * 96
            assert np.isnan(boxes).any(axis=1).tolist() == [not item.visible(frame) for frame in range(8)]
            cover = scene.patch_cover(item, 96, samples=2)
            for frame in range(item.start, item.stop):
                rows, columns = np.nonzero(cover[frame])
                left, top, right, bottom = boxes[frame]
                assert left - 1 <= columns.min() <= columns.max() <= right
                assert top - 1 <= rows.min() <= rows.max() <= bottom


def test_objects_stay_inside_and_apart():
    for seed in SEEDS:
        scene = draw_scene(seed)
        boxes = np.stack([scene.boxes(index) for index in range(len(scene.objects))])
        shown = boxes[~np.isnan(boxes)]
        assert 0 <= shown.min() <= shown.max() <= 1
        for frame in range(scene.frames):
            there = [box for box in boxes[:, frame] if not np.isnan(box).any()]
            for number, (left, top, right, bottom) in enumerate(there):
                for other in there[number + 1 :]:
                    assert left > other[2] or other[0] > right or top > other[3] or other[1] > bottom


def test_busy_and_empty_scenes():
    busy = [draw_scene(seed, BUSY) for seed in SEEDS]
    empty = [draw_scene(seed, EMPTY) for seed in SEEDS]
    assert np.mean([len(scene.objects) for scene in busy]) > 3.9
    assert {scene.clutter for scene in busy} == {6}
    assert {(len(scene.objects), scene.clutter, scene.dot) for scene in empty} == {(1, 0, None)}


@pytest.mark.parametrize("frames", [1, 3, 8, 16])
def test_any_number_of_frames(frames):
    scene = draw_scene(3, SceneConfig(frames=frames))
    assert render(scene, 64).shape == (frames, 64, 64, 3)
    assert all(0 <= item.start < item.stop <= frames for item in scene.objects)


def test_every_attribute_occurs():
    items = [item for seed in range(200) for item in draw_scene(seed).objects]
    assert {item.shape for item in items} == set(SHAPES)
    assert {item.color for item in items} == set(COLORS)
    assert {item.size for item in items} == set(SIZES)
