"""Questions about a scene with their answers; every answer is one word and follows from the scene alone."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.evaluation.renderer import COLORS, DIRECTIONS, SHAPES, SIZES, UNSEEN_PAIRS, Scene, SceneObject

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")

CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")

TEMPLATES = {
    "exists": "is there a {0}",
    "color": "what color is {0}",
    "shape": "what shape is {0}",
    "size": "is {0} big or small",
    "direction": "which way does {0} move",
    "moves": "what {1} is the object that moves",
    "count": "how many objects are there",
    "count_of": "how many {0} objects are there",
    "first": "which appears first {0} or {1}",
    "before": "does {0} appear before {1}",
    "when": "at which second does {0} appear",
    "vanishes": "does {0} vanish",
    "which_vanishes": "what {1} is the object that vanishes",
    "side": "is {0} left or right at the end",
    "half": "is {0} up or down at the end",
    "corner": "in which corner is {0} at the end",
    "dot": "is there a dot",
    "dot_color": "what color is the dot",
}

TEMPORAL = ("direction", "moves", "first", "before", "when", "vanishes", "which_vanishes")
"""Kinds that a single image does not answer."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its one-word answer, its kind, and the indices of the scene's objects that it names."""

    kind: str
    text: str
    answer: str
    objects: tuple[int, ...] = ()


def vocabulary() -> tuple[str, ...]:
    """Every word of every question and answer, sorted."""
    words = {"yes", "no", "object", "the", "shape", "color", *NUMBERS, *SHAPES, *COLORS, *SIZES, *DIRECTIONS, *CORNERS}
    for template in TEMPLATES.values():
        words.update(word for word in template.split() if "{" not in word)
    return tuple(sorted(words))


def draw_questions(
    scene: Scene, rng: np.random.Generator, count: int, weights: Mapping[str, float] | None = None
) -> list[Question]:
    """`count` different questions about the scene, fewer if it does not give as many.

    weights: how often each kind is tried, all alike by default
    """
    chances = np.array([1.0 if weights is None else weights[kind] for kind in TEMPLATES])
    drawn: dict[str, Question] = {}
    for kind in rng.choice(list(TEMPLATES), size=8 * count, p=chances / chances.sum()):
        question = ask(scene, str(kind), rng)
        if question is not None:
            drawn.setdefault(question.text, question)
        if len(drawn) == count:
            break
    return list(drawn.values())


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """A question of one kind, None where the scene does not allow it, or not without ambiguity."""
    if scene.frames == 1 and kind in TEMPORAL:
        return None
    return _ASKERS[kind](scene, kind, rng)


def names_of(scene: Scene, index: int) -> dict[str, str]:
    """Unambiguous names of an object, by the attributes used: `shape`, `color` or `pair`; possibly none."""
    item = scene.objects[index]
    names = {}
    if sum(other.shape == item.shape for other in scene.objects) == 1:
        names["shape"] = f"the {item.shape}"
    if sum(other.color == item.color for other in scene.objects) == 1:
        names["color"] = f"the {item.color} object"
    if sum((other.color, other.shape) == (item.color, item.shape) for other in scene.objects) == 1:
        names["pair"] = f"the {item.color} {item.shape}"
    return names


def names_unseen_pair(text: str) -> bool:
    """Whether a question names a pair of colour and shape that no training shows."""
    words = text.split()
    return any(pair in UNSEEN_PAIRS for pair in itertools.pairwise(words))


def _question(kind: str, answer: str, *parts: str, objects: tuple[int, ...] = ()) -> Question:
    return Question(kind=kind, text=TEMPLATES[kind].format(*parts), answer=answer, objects=objects)


def _pick(rng: np.random.Generator, options: Iterable[str]) -> str:
    return str(rng.choice(sorted(options)))


def _draw_named(
    scene: Scene, rng: np.random.Generator, *ways: str, keep: Callable[[SceneObject], bool] = lambda _: True
) -> tuple[int, str] | None:
    """An object and an unambiguous name for it, among the objects that pass `keep`."""
    for index in rng.permutation(len(scene.objects)):
        names = {way: name for way, name in names_of(scene, int(index)).items() if not ways or way in ways}
        if names and keep(scene.objects[index]):
            return int(index), names[_pick(rng, names)]
    return None


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _exists(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    if not scene.objects:
        return None
    colors, shapes = [item.color for item in scene.objects], [item.shape for item in scene.objects]
    truth, way = rng.random() < 0.5, int(rng.integers(4))
    if way == 0:
        word = _pick(rng, set(shapes) if truth else set(SHAPES) - set(shapes))
        return _question(kind, _yes(truth), word, objects=_where(scene, lambda item: item.shape == word))
    if way == 1:
        word = _pick(rng, set(colors) if truth else set(COLORS) - set(colors))
        return _question(kind, _yes(truth), f"{word} object", objects=_where(scene, lambda item: item.color == word))
    index = int(rng.integers(len(colors)))
    pair = (colors[index], shapes[index])
    if not truth:
        present = set(zip(colors, shapes, strict=True))
        near = {(c, s) for c in COLORS for s in SHAPES if (c in colors) + (s in shapes) == way - 1} - present
        mixed = {(c, s) for c in colors for s in shapes} - present
        options = sorted(mixed if way == 3 and mixed else near or {(c, s) for c in COLORS for s in SHAPES} - present)
        pair = options[int(rng.integers(len(options)))]
    return _question(kind, _yes(truth), " ".join(pair), objects=(index,) if truth else ())


def _where(scene: Scene, keep: Callable[[SceneObject], bool]) -> tuple[int, ...]:
    return tuple(index for index, item in enumerate(scene.objects) if keep(item))


def _attribute(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """An attribute of a named object; the name must not give the attribute away."""
    ways = {"color": ("shape",), "shape": ("color",)}.get(kind, ())
    found = _draw_named(scene, rng, *ways)
    if found is None:
        return None
    return _question(kind, str(getattr(scene.objects[found[0]], kind)), found[1], objects=(found[0],))


def _that(test: Callable[[Scene, SceneObject], bool]) -> Callable[[Scene, str, np.random.Generator], Question | None]:
    """Colour or shape of the only object that passes the test."""

    def asker(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
        found = _where(scene, lambda item: test(scene, item))
        if len(found) != 1:
            return None
        attribute = _pick(rng, ("color", "shape"))
        return _question(kind, str(getattr(scene.objects[found[0]], attribute)), "", attribute, objects=found)

    return asker


def _count(scene: Scene, kind: str, _: np.random.Generator) -> Question | None:
    return _question(kind, NUMBERS[len(scene.objects)], objects=tuple(range(len(scene.objects))))


def _count_of(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    counts = Counter(item.color for item in scene.objects)
    several = {color for color, number in counts.items() if number > 1}
    color = _pick(rng, COLORS if rng.random() < 0.15 or not counts else several or counts)
    return _question(kind, NUMBERS[counts[color]], color, objects=_where(scene, lambda item: item.color == color))


def _order(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """Which of two objects of different first frames comes first, both named by the same attribute."""
    way = _pick(rng, ("shape", "color"))
    one = _draw_named(scene, rng, way)
    if one is None:
        return None
    first = scene.objects[one[0]]
    two = _draw_named(scene, rng, way, keep=lambda item: item.start != first.start)
    if two is None:
        return None
    second = scene.objects[two[0]]
    earlier = first if first.start < second.start else second
    answer = str(getattr(earlier, way)) if kind == "first" else _yes(earlier is first)
    return _question(kind, answer, one[1], two[1], objects=(one[0], two[0]))


def _when(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    found = _draw_named(scene, rng, keep=lambda item: 0 < item.start < len(NUMBERS))
    if found is None:
        return None
    return _question(kind, NUMBERS[scene.objects[found[0]].start], found[1], objects=(found[0],))


def _vanishes(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    truth = rng.random() < 0.5
    found = _draw_named(scene, rng, keep=lambda item: (item.stop < scene.frames) == truth)
    return None if found is None else _question(kind, _yes(truth), found[1], objects=(found[0],))


def _end_place(axis: int, low: str, high: str) -> Callable[[Scene, str, np.random.Generator], Question | None]:
    """Which half of the frame an object is in when it was last seen; objects near the middle are not asked about."""

    def asker(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
        found = _draw_named(scene, rng, keep=lambda item: abs(item.centers[item.stop - 1, axis] - 0.5) > 0.06)
        if found is None:
            return None
        item = scene.objects[found[0]]
        answer = low if item.centers[item.stop - 1, axis] < 0.5 else high
        return _question(kind, answer, found[1], objects=(found[0],))

    return asker


def _corner(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """In which quarter of the frame an object was last seen; objects near a middle line are not asked about."""
    found = _draw_named(scene, rng, keep=lambda item: bool(np.all(abs(item.centers[item.stop - 1] - 0.5) > 0.06)))
    if found is None:
        return None
    item = scene.objects[found[0]]
    right, bottom = item.centers[item.stop - 1] > 0.5
    return _question(kind, CORNERS[2 * bottom + right], found[1], objects=(found[0],))


def _dot(scene: Scene, kind: str, _: np.random.Generator) -> Question | None:
    return _question(kind, _yes(scene.dot is not None))


def _dot_color(scene: Scene, kind: str, _: np.random.Generator) -> Question | None:
    return None if scene.dot is None else _question(kind, scene.dot.color)


_ASKERS: dict[str, Callable[[Scene, str, np.random.Generator], Question | None]] = {
    "exists": _exists,
    "color": _attribute,
    "shape": _attribute,
    "size": _attribute,
    "direction": _attribute,
    "moves": _that(lambda _, item: item.direction != "nowhere"),
    "count": _count,
    "count_of": _count_of,
    "first": _order,
    "before": _order,
    "when": _when,
    "vanishes": _vanishes,
    "which_vanishes": _that(lambda scene, item: item.stop < scene.frames),
    "side": _end_place(0, "left", "right"),
    "half": _end_place(1, "up", "down"),
    "corner": _corner,
    "dot": _dot,
    "dot_color": _dot_color,
}
