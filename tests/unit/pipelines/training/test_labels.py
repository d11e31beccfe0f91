"""What patches are said to show, against the rendered truth."""

import numpy as np
import pytest
import torch

from pipelines.evaluation.renderer import DIRECTIONS, SceneConfig, draw_scene
from pipelines.training.labels import COVERED, DOT, ClipLabels, PatchLabels
from pipelines.training.packing import IGNORE
from pipelines.training.student import GRID
from pipelines.training.tokenizer import VIDEO_LLAVA_WORDS as WORDS

SCENES = [draw_scene(seed, SceneConfig(frames=frames)) for seed in range(12) for frames in (1, 5, 8)]


@pytest.mark.parametrize("group", [1, 2])
def test_owners_cover_their_patches_and_nobody_covers_the_background(group):
    for scene in SCENES:
        owner = ClipLabels.of(scene, WORDS, group).owner.view(-1, GRID, GRID).numpy()
        assert len(owner) == -(-scene.frames // group)
        covers = {1 + index: scene.patch_cover(item, GRID) for index, item in enumerate(scene.objects)}
        if scene.dot:
            covers[DOT] = 9 * scene.patch_cover(scene.dot, GRID)
        for view, row, column in np.ndindex(*owner.shape):
            frames = slice(view * group, (view + 1) * group)
            here = {index: float(cover[frames, row, column].max()) for index, cover in covers.items()}
            index = int(owner[view, row, column])
            assert max(here.values()) <= COVERED if index == 0 else here[index] == max(here.values()) > COVERED


@pytest.mark.parametrize("group", [1, 2])
def test_patches_tell_their_objects_words_and_times(group):
    for scene in SCENES:
        labels = ClipLabels.of(scene, WORDS, group)
        for place, owner in enumerate(labels.owner.tolist()):
            view = place // GRID**2
            assert labels.view[place] == view
            told = [getattr(labels, name)[place].item() for name in ("shape", "color", "motion", "onset")]
            if owner == 0:
                assert told == [IGNORE] * 4
                assert labels.opens[place] == labels.closes[place] == 0
                continue
            item = scene.dot if owner == DOT else scene.objects[owner - 1]
            motion = list(DIRECTIONS).index(item.direction)
            assert told == [WORDS.id(item.shape), WORDS.id(item.color), motion, item.start]
            earlier = any(item.visible(frame) for frame in range(view * group))
            later = any(item.visible(frame) for frame in range((view + 1) * group, scene.frames))
            assert (labels.opens[place] == 1, labels.closes[place] == 1) == (not earlier, not later)


def test_a_cls_token_tells_nothing_and_the_others_are_where_they_were():
    clips = [ClipLabels.of(scene, WORDS, 1) for scene in SCENES if scene.frames == 5]
    patch = torch.tensor([-1, 3, -1, 40, 179])
    stacked = ClipLabels.stacked(clips, patch)
    assert stacked.owner[:, [0, 2]].eq(IGNORE).all()
    assert stacked.view[:, [0, 2]].eq(IGNORE).all()
    for row, clip in enumerate(clips):
        assert stacked.shape[row, [1, 3, 4]].equal(clip.shape[patch[[1, 3, 4]]])
    index = torch.tensor([[1, 4]]).expand(len(clips), -1)
    assert stacked.at(index).onset.equal(stacked.onset[:, [1, 4]])


@pytest.mark.parametrize("group", [1, 2])
def test_dense_labels_tell_where_an_object_is_in_every_frame_of_its_view(group):
    for seed in range(8):
        scene = draw_scene(seed, SceneConfig(frames=4, dot_probability=1.0))
        items = (*scene.objects, scene.dot)
        labels = PatchLabels.of(scene, group)
        for view, patch in np.ndindex(*labels.shape.shape):
            row, column = divmod(patch, GRID)
            assert labels.place[view, patch] == patch
            bits, offset = int(labels.seen[view, patch]), labels.offset[view, patch].view(group, 2)
            if labels.shape[view, patch] == 0:
                assert bits == IGNORE
                assert offset.isnan().all()
                continue
            middle = (np.array([column, row]) + 0.5) / GRID
            fits = []
            for item in items:
                seen = [item.visible(view * group + k) for k in range(group)]
                at = (item.centers[view * group : (view + 1) * group] - middle) * GRID
                truth = np.where(np.array(seen)[:, None], at, np.nan)
                same = bits == sum(1 << k for k in range(group) if seen[k])
                fits.append(same and np.allclose(offset.numpy(), truth, atol=1e-4, equal_nan=True))
            assert sum(fits) == 1, (seed, view, patch)
