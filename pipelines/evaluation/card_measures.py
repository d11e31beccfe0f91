"""What a model card says, measured: exact match by kind in all ways, unseen pairs, images, facts about attention."""

from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from typing import cast

import numpy as np

from occam.config import OccamToken
from occam.engine import Engine
from occam.types import FrameBatch
from pipelines.evaluation.adaptivity import about_one_object
from pipelines.evaluation.attention import AttentionFacts, attention_facts, sinks
from pipelines.evaluation.clips import clean_frames_of, scenes
from pipelines.evaluation.exact_match import Column, sheet_of_unpruned, sheets_of_ways
from pipelines.evaluation.material import Progress, Sample, counted
from pipelines.evaluation.questions import TEMPLATES, TEMPORAL, Question, names_unseen_pair
from pipelines.evaluation.renderer import FIRST_TEST_SEED, UNSEEN_PAIRS, Scene, SceneConfig
from pipelines.evaluation.shares import Asked, Blind, equal_shares
from pipelines.evaluation.statistics import Estimate

BLIND_SHARE = 4
"""Training questions that the blind answers are counted over, for each that is asked."""
SMALL_SHARE = 3
"""Unseen pairs and images get one question for so many of the main table."""
FIRST_UNSEEN_SEED, FIRST_IMAGE_SEED, FIRST_ATTENTION_SEED = (FIRST_TEST_SEED + at for at in (200_000, 300_000, 400_000))
SEEN = SceneConfig(unseen_pairs=False)
IMAGES = SceneConfig(frames=1, unseen_pairs=False)
NAMING = tuple(kind for kind, template in TEMPLATES.items() if "{0}" in template)
"""Kinds that name an object."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What is asked, the same of every model: seen pairs, unseen pairs, images; and answers without looking."""

    seen: list[Asked]
    unseen: list[Asked]
    images: list[Asked]
    blind: Blind
    per_kind: int

    @classmethod
    def drawn(cls, per_kind: int) -> "Material":
        """`per_kind` questions of every kind for the main table, a part of that for the others (`SMALL_SHARE`)."""
        few = ceil(per_kind / SMALL_SHARE)
        kinds, still = list(TEMPLATES), [kind for kind in TEMPLATES if kind not in TEMPORAL]
        return cls(
            seen=equal_shares(scenes(FIRST_TEST_SEED, SEEN), kinds, per_kind, _is_seen),
            unseen=equal_shares(scenes(FIRST_UNSEEN_SEED), NAMING, few, _is_unseen),
            images=equal_shares(scenes(FIRST_IMAGE_SEED, IMAGES), still, few, _is_seen),
            blind=Blind.of(equal_shares(scenes(0, SEEN), kinds, BLIND_SHARE * per_kind, _is_seen)),
            per_kind=per_kind,
        )


@dataclass(frozen=True, kw_only=True)
class Card:
    """What was measured of one model.

    ways: the columns of the main table; seen: unpruned there, the mean of the kinds that `unseen` has
    images: None for a model that takes none; scenes: those of the main table
    attention: with the zero token in place; sinks: largest patch norm over the median, without it
    """

    model: str

    pruning: OccamToken
    ways: tuple[Column, ...]
    unseen: Column
    seen: Estimate
    images: Column | None
    attention: AttentionFacts
    sinks: Estimate
    scenes: int


def measure(engine: Engine, material: Material, progress: Progress) -> Card:
    """Ask everything, in all ways; NotCalibrated for a model without a calibration."""
    pruning = cast(OccamToken, engine.pruning("occam"))
    sheets = sheets_of_ways(engine, material.seen, pruning, material.blind, progress)
    unseen = sheet_of_unpruned(engine, material.unseen, clean_frames_of, "unseen pairs", progress)
    images = None
    if "image" in engine.info.media:
        images = sheet_of_unpruned(engine, material.images, _image_of, "images", progress)
    clips = _clips_about_objects(material.per_kind)
    return Card(
        model=engine.info.name,
        pruning=pruning,
        ways=tuple(sheet.column() for sheet in sheets),
        unseen=unseen.column(),
        seen=sheets[0].of(NAMING),
        images=None if images is None else images.column(),
        attention=attention_facts(
            engine, replace(pruning, register="zero_token"), counted("attention", clips, progress)
        ),
        sinks=sinks(engine, counted("norms", clips, progress)),
        scenes=len(material.seen),
    )


def _clips_about_objects(count: int) -> list[Sample]:
    """Clips of seen pairs, each with a question about every one of its objects that can be named."""
    return [
        Sample.known(clean_frames_of(scene), scene, about_one_object(scene, np.random.default_rng(scene.seed)))
        for scene in islice(scenes(FIRST_ATTENTION_SEED, SEEN), count)
    ]


def _is_seen(scene: Scene, question: Question) -> bool:
    del scene
    return not names_unseen_pair(question.text)


def _is_unseen(scene: Scene, question: Question) -> bool:
    """Whether it is about an object of an unseen pair, by whatever name, or names such a pair, on a scene with one."""
    unseen = {at for at, item in enumerate(scene.objects) if (item.color, item.shape) in UNSEEN_PAIRS}
    return bool(unseen) and (bool(unseen & set(question.objects)) or names_unseen_pair(question.text))


def _image_of(scene: Scene) -> FrameBatch:
    return clean_frames_of(scene, "image")
