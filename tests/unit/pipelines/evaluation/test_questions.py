"""Every answer is checked against a second reading of the question, which watches the boxes."""

import re

import numpy as np
import pytest

from pipelines.evaluation.questions import (
    NUMBERS,
    TEMPLATES,
    TEMPORAL,
    ask,
    draw_questions,
    names_unseen_pair,
    vocabulary,
)
from pipelines.evaluation.renderer import COLORS, SHAPES, UNSEEN_PAIRS, SceneConfig, draw_scene

SCENES = [draw_scene(seed) for seed in range(1_000_000, 1_000_200)]


class Watcher:
    """Answers by watching: which boxes are there, and where, in each frame."""

    def __init__(self, scene):
        self.scene = scene
        self.boxes = [scene.boxes(index) for index in range(len(scene.objects))]
        self.seen = [np.flatnonzero(~np.isnan(boxes[:, 0])) for boxes in self.boxes]

    def find(self, name):
        words = set(name.replace("the ", "").replace("object", "").split())
        return [i for i, item in enumerate(self.scene.objects) if words <= {item.color, item.shape}]

    def one(self, name):
        (index,) = self.find(name)
        return index

    def path(self, index):
        middles = (self.boxes[index][:, :2] + self.boxes[index][:, 2:]) / 2
        return middles[self.seen[index]]

    def direction(self, index):
        x, y = self.path(index)[-1] - self.path(index)[0]
        if max(abs(x), abs(y)) < 0.01:
            return "nowhere"
        if abs(x) > abs(y):
            return "right" if x > 0 else "left"
        return "down" if y > 0 else "up"

    def size(self, index):
        left, _, right, _ = self.boxes[index][self.seen[index][0]]
        return "big" if right - left > 0.22 else "small"

    def gone(self, index):
        return self.seen[index][-1] < self.scene.frames - 1

    def only(self, attribute, test):
        (index,) = [index for index in range(len(self.boxes)) if test(index)]
        return getattr(self.scene.objects[index], attribute)

    def answer(self, text):
        for pattern, reader in READERS:
            if found := re.fullmatch(pattern, text):
                return reader(self, *found.groups())
        raise AssertionError(f"no reader for {text!r}")


def yes(value):
    return "yes" if value else "no"


def first(watcher, one, two):
    early = min((one, two), key=lambda name: watcher.seen[watcher.one(name)][0])
    return early.split()[1]


def corner(watcher, name):
    x, y = watcher.path(watcher.one(name))[-1]
    return f"{'top' if y < 0.5 else 'bottom'}-{'left' if x < 0.5 else 'right'}"


READERS = [
    (r"is there a dot", lambda w: yes(w.scene.dot)),
    (r"what color is the dot", lambda w: w.scene.dot.color),
    (r"is there a (.*)", lambda w, name: yes(w.find(name))),
    (r"what (color|shape) is the object that moves", lambda w, a: w.only(a, lambda i: w.direction(i) != "nowhere")),
    (r"what (color|shape) is the object that vanishes", lambda w, a: w.only(a, w.gone)),
    (r"what (color|shape) is (the .*)", lambda w, a, name: getattr(w.scene.objects[w.one(name)], a)),
    (r"is (the .*) big or small", lambda w, name: w.size(w.one(name))),
    (r"which way does (.*) move", lambda w, name: w.direction(w.one(name))),
    (r"how many objects are there", lambda w: NUMBERS[len(w.boxes)]),
    (r"how many (.*) objects are there", lambda w, name: NUMBERS[len(w.find(name))]),
    (r"which appears first (.*) or (.*)", first),
    (r"does (.*) appear before (.*)", lambda w, a, b: yes(w.seen[w.one(a)][0] < w.seen[w.one(b)][0])),
    (r"at which second does (.*) appear", lambda w, name: NUMBERS[w.seen[w.one(name)][0]]),
    (r"does (.*) vanish", lambda w, name: yes(w.gone(w.one(name)))),
    (r"is (.*) left or right at the end", lambda w, n: "left" if w.path(w.one(n))[-1][0] < 0.5 else "right"),
    (r"is (.*) up or down at the end", lambda w, n: "up" if w.path(w.one(n))[-1][1] < 0.5 else "down"),
    (r"in which corner is (.*) at the end", corner),
]  # fmt: skip


@pytest.mark.parametrize("kind", TEMPLATES)
def test_answers_agree_with_watching(kind):
    asked = 0
    for scene in SCENES:
        question = ask(scene, kind, np.random.default_rng(scene.seed))
        if question is not None:
            asked += 1
            assert question.kind == kind
            assert question.answer == Watcher(scene).answer(question.text), (scene.seed, question.text)
    assert asked > 15


def test_objects_are_the_ones_named():
    for scene in SCENES:
        question = ask(scene, "direction", np.random.default_rng(scene.seed))
        if question is not None:
            name = re.fullmatch("which way does (.*) move", question.text).group(1)
            assert question.objects == (Watcher(scene).one(name),)


def test_questions_are_different_deterministic_and_in_the_vocabulary():
    words = set(vocabulary())
    for scene in SCENES[:50]:
        first, again = (draw_questions(scene, np.random.default_rng(scene.seed), 8) for _ in range(2))
        assert first == again
        assert len({question.text for question in first}) == len(first) >= 4
        for question in first:
            assert set(question.text.split()) <= words
            assert question.answer in words


def test_yes_and_no_are_balanced_enough_that_guessing_does_not_pay():
    for kind in ("exists", "before", "vanishes"):
        answers = [ask(scene, kind, np.random.default_rng(scene.seed)) for scene in SCENES]
        share = np.mean([question.answer == "yes" for question in answers if question])
        assert 0.25 < share < 0.75, kind


def test_attributes_do_not_give_themselves_away():
    for scene in SCENES:
        for kind, words in (("color", COLORS), ("shape", SHAPES)):
            question = ask(scene, kind, np.random.default_rng(scene.seed))
            assert question is None or question.answer in words
            assert question is None or question.answer not in question.text.split()


def test_an_image_is_asked_nothing_about_time_and_everything_else():
    scenes = [draw_scene(seed, SceneConfig(frames=1)) for seed in range(1_000_000, 1_000_100)]
    for kind in TEMPLATES:
        asked = [ask(scene, kind, np.random.default_rng(scene.seed)) for scene in scenes]
        assert any(asked) == (kind not in TEMPORAL), kind
        for scene, question in zip(scenes, asked, strict=True):
            assert question is None or question.answer == Watcher(scene).answer(question.text)


def test_a_pair_is_unseen_by_the_words_side_by_side():
    color, shape = sorted(UNSEEN_PAIRS)[0]
    other = next(name for name in SHAPES if (color, name) not in UNSEEN_PAIRS)
    assert names_unseen_pair(f"is there a {color} {shape}")
    assert not names_unseen_pair(f"is there a {color} {other}")
    assert not names_unseen_pair(f"which appears first the {shape} or the {color} object")
    assert len(UNSEEN_PAIRS) == 9


def test_kinds_come_alike_unless_weighted():
    scene, weights = SCENES[3], dict.fromkeys(TEMPLATES, 0.0) | {"exists": 1.0}
    assert {q.kind for q in draw_questions(scene, np.random.default_rng(0), 5, weights)} == {"exists"}
    assert len({q.kind for q in draw_questions(scene, np.random.default_rng(0), 12)}) > 6
