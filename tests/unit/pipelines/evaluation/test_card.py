"""Model cards: what is asked is balanced, what is counted is right, what is written goes between the markers."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from occam.config import EngineConfig, OccamToken, Pruning, SamplingParams
from occam.engine import Engine
from occam.errors import InvalidInput
from occam.models.registry import load_model
from occam.stats import VisualTokenCounts
from occam.types import FrameBatch
from pipelines.evaluation import card
from pipelines.evaluation.attention import covers_of
from pipelines.evaluation.card_measures import NAMING, SEEN, Material
from pipelines.evaluation.clips import scenes
from pipelines.evaluation.exact_match import Sheet, file_frames_of, sheets_of_ways
from pipelines.evaluation.markdown import replaced
from pipelines.evaluation.questions import TEMPLATES, TEMPORAL, Question, names_unseen_pair
from pipelines.evaluation.renderer import FIRST_TEST_SEED, UNSEEN_PAIRS, draw_scene, render
from pipelines.evaluation.shares import Asked, Blind, equal_shares
from pipelines.evaluation.statistics import auc, estimate, estimate_columns

PER_KIND = 7
OCCAM = OccamToken(lambda1=1.0, lambda2=4.0, cut=1, register="zero_token")


@pytest.fixture(scope="module")
def material() -> Material:
    return Material.drawn(PER_KIND)


def _by_kind(asked: list[Asked]) -> dict[str, list[tuple[Any, Question]]]:
    pairs = [(each.scene, question) for each in asked for question in each.questions]
    return {kind: [pair for pair in pairs if pair[1].kind == kind] for kind in {q.kind for _, q in pairs}}


def test_kinds_have_equal_shares_and_yes_and_no_are_balanced(material: Material) -> None:
    kinds = _by_kind(material.seen)
    assert {kind: len(pairs) for kind, pairs in kinds.items()} == dict.fromkeys(TEMPLATES, PER_KIND)
    for kind in ("exists", "vanishes", "before", "dot"):
        yes = sum(question.answer == "yes" for _, question in kinds[kind])
        assert yes in (PER_KIND // 2, PER_KIND // 2 + 1)
    seeds = [each.scene.seed for each in material.seen]
    assert seeds == sorted(set(seeds))
    assert seeds[0] >= FIRST_TEST_SEED
    for each in material.seen:
        assert len({question.kind for question in each.questions}) == len(each.questions) > 0
        assert not any((item.color, item.shape) in UNSEEN_PAIRS for item in each.scene.objects)
        assert not any(names_unseen_pair(question.text) for question in each.questions)


def test_what_is_drawn_of_a_kind_does_not_depend_on_the_other_kinds() -> None:
    def everything(scene: Any, question: Question) -> bool:
        return True

    alone = equal_shares(scenes(FIRST_TEST_SEED, SEEN), ["size"], 12, everything)
    among = equal_shares(scenes(FIRST_TEST_SEED, SEEN), ["exists", "shape", "size"], 12, everything)
    assert [q.text for _, q in _by_kind(alone)["size"]] == [q.text for _, q in _by_kind(among)["size"]]


def test_questions_of_unseen_pairs_are_about_one_on_screen_or_name_one(material: Material) -> None:
    kinds = _by_kind(material.unseen)
    few = math.ceil(PER_KIND / 3)
    assert {kind: len(pairs) for kind, pairs in kinds.items()} == dict.fromkeys(NAMING, few)
    texts = []
    for scene, question in itertools.chain.from_iterable(kinds.values()):
        unseen = [at for at, item in enumerate(scene.objects) if (item.color, item.shape) in UNSEEN_PAIRS]
        assert unseen
        assert set(unseen) & set(question.objects) or names_unseen_pair(question.text)
        texts.append(question.text)
    assert any(not names_unseen_pair(text) for text in texts), "named by one attribute, an object counts as well"


def test_images_are_asked_only_what_an_image_shows(material: Material) -> None:
    kinds = _by_kind(material.images)
    assert set(kinds) == set(TEMPLATES) - set(TEMPORAL)
    assert all(scene.frames == 1 for scene, _ in itertools.chain.from_iterable(kinds.values()))


def _question(kind: str, text: str, answer: str) -> Question:
    return Question(kind=kind, text=text, answer=answer)


def test_blind_gives_the_usual_answer_to_the_text_else_to_the_kind() -> None:
    known = [
        _question("size", "is the star big or small", "big"),
        _question("size", "is the ring big or small", "small"),
        _question("size", "is the ring big or small", "small"),
        _question("dot", "is there a dot", "yes"),
    ]
    blind = Blind.of([Asked(scene=draw_scene(1), questions=(question,)) for question in known])
    assert blind.answer(known[0]) == "big"
    assert blind.answer(_question("size", "is the cross big or small", "?")) == "small"
    assert blind.answer(_question("color", "what color is the dot", "?")) == ""


class Seer:
    """Answers right iff it sees the very scene as it was rendered: not another, and not its file."""

    config = EngineConfig(chunk_frames=8)
    info = SimpleNamespace(name="seer", media=("video",), frames=8)
    state_of = Engine.state_of

    def chunk(self, pruning: Pruning, frames: int) -> int:
        return self.config.chunk_frames

    def __init__(self, asked: list[Asked]) -> None:
        self.truth = {f"scene-{each.scene.seed}": {q.text: q.answer for q in each.questions} for each in asked}
        self.lambdas: list[float] = []

    def begin(self, pruning: Pruning) -> Any:
        return None

    def append(self, state: Any, frames: FrameBatch, pruning: Pruning) -> Any:
        return frames.digest, ()

    def ask(self, state: Any, question: str, pruning: Pruning, sampling: SamplingParams) -> Any:
        self.lambdas.append(getattr(pruning, "lambda2", 0.0))
        text = self.truth.get(state, {}).get(question, "").upper()
        return SimpleNamespace(text=text, visual_tokens=VisualTokenCounts(encoded=8, stage1=4, stage2=2))


def test_every_way_asks_over_its_own_clip(material: Material) -> None:
    asked = material.seen[-3:]
    asked[0], asked[1] = (Asked(scene=each.scene, questions=(_question("count", "how", "one"),)) for each in asked[:2])
    engine: Any = Seer(asked)
    steps: list[tuple[str, int, int]] = []
    blind = Blind(by_text={}, by_kind={"count": "one"})
    sheets = sheets_of_ways(engine, asked, OCCAM, blind, lambda *step: steps.append(step))
    columns = {sheet.name: sheet.column() for sheet in sheets}
    assert list(columns) == ["unpruned", "H.264 file", "lambda2 2", "lambda2 4", "lambda2 8", "shuffled", "blind"]
    right = {name: column.mean.mean for name, column in columns.items()}
    assert right["unpruned"] == right["lambda2 2"] == right["lambda2 8"] == 1.0
    assert right["H.264 file"] == 0.0
    assert columns["shuffled"].kinds["count"].mean == 0.5, "the second clip answers the first, the third not the second"
    assert columns["blind"].kinds["count"].mean == 1.0
    assert set(engine.lambdas) == {0.0, 2.0, 4.0, 8.0}
    assert columns["lambda2 4"].patches == (8, 4, 2)
    assert columns["blind"].patches is None
    assert steps == [("clips", 1, 3), ("clips", 2, 3), ("clips", 3, 3)]


def test_a_file_is_read_as_a_users_is() -> None:
    scene = draw_scene(FIRST_TEST_SEED)
    frames = file_frames_of(scene, SimpleNamespace(name="any", media=("video",), frames=16))
    assert frames.pts_seconds.tolist() == list(range(8))
    assert not frames.digest.startswith("scene-")
    difference = np.abs(frames.frames.astype(int) - render(scene)).mean()
    assert 0 < difference < 4


def test_the_mean_of_kinds_weighs_kinds_alike() -> None:
    sheet = Sheet(name="")
    for right in (True, True, True, False):
        sheet.mark([_question("count", "how", "one")], ["one" if right else "two"])
    sheet.mark([_question("dot", "is", "yes")], ["no"])
    column = sheet.column()
    assert column.kinds["count"].mean == 0.75
    assert column.mean.mean == 0.375
    assert sheet.of(["count"]).mean == 0.75


def test_columns_are_estimated_by_drawing_whole_rows_again() -> None:
    rng = np.random.default_rng(0)
    full = rng.integers(0, 2, (200, 3)).astype(float)
    ours, theirs = estimate_columns(full), estimate(full)
    assert (ours.mean, ours.n) == (pytest.approx(theirs.mean), theirs.n)
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=0.01), pytest.approx(theirs.high, abs=0.01))
    together = np.repeat(rng.integers(0, 2, (100, 1)), 4, axis=1).astype(float)
    alone = np.full((400, 4), np.nan)
    alone[np.arange(400), np.arange(400) % 4] = together.T.reshape(-1)[np.arange(400)]
    wide, narrow = estimate_columns(together), estimate_columns(alone)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    with_empty_row = np.array([[1.0, np.nan], [np.nan, np.nan], [np.nan, 0.0]])
    assert estimate_columns(with_empty_row).mean == 0.5
    with pytest.raises(ValueError, match="nothing"):
        estimate_columns([[1.0, np.nan]])


def test_auc_equals_the_literal_count_with_ties() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        scores, positive = rng.integers(0, 6, 40) / 5, rng.random(40) < 0.3
        pairs = list(itertools.product(scores[positive], scores[~positive]))
        literal = sum(1.0 if one > other else 0.5 if one == other else 0.0 for one, other in pairs) / len(pairs)
        assert auc(scores, positive) == pytest.approx(literal)
    with pytest.raises(ValueError, match="both kinds"):
        auc([1.0, 2.0], [True, True])


def test_a_view_shows_what_any_of_its_frames_does() -> None:
    scene = draw_scene(FIRST_TEST_SEED + 3)
    each = np.max([scene.patch_cover(item, 6) for item in scene.objects], axis=0).reshape(8, 36)
    assert np.array_equal(covers_of(scene, scene.objects, [6] * 8, 8), each)
    assert np.array_equal(covers_of(scene, scene.objects, [6] * 4, 8), np.maximum(each[::2], each[1::2]))
    assert np.array_equal(covers_of(scene, scene.objects, [6] * 3, 8)[2], np.maximum(each[6], each[7]))
    coarse, fine = covers_of(scene, scene.objects, [6, 12], 1)
    assert np.array_equal(coarse, each[0]), "an image is the first frame"
    assert fine.reshape(6, 2, 6, 2).mean(axis=(1, 3)).ravel() == pytest.approx(coarse, abs=0.1), "and so are its tiles"


DOCUMENT = "head\n<!-- card a -->\nold\n<!-- /card a -->\nmiddle\n<!-- card ab -->\n<!-- /card ab -->\n"


def test_a_card_is_replaced_between_its_markers_only() -> None:
    once = replaced(DOCUMENT, "card a", "| x |\n")
    assert once == DOCUMENT.replace("old", "\n| x |\n")
    assert replaced(once, "card a", "| x |\n") == once
    assert replaced(once, "card ab", "y").startswith(once.partition("<!-- card ab")[0])


@pytest.mark.parametrize(
    "document",
    ["", "<!-- card a -->", "<!-- /card a --><!-- card a -->", DOCUMENT + DOCUMENT, "<!-- /card a -->" + DOCUMENT],
)
def test_a_document_without_its_two_markers_is_refused(document: str) -> None:
    with pytest.raises(InvalidInput, match="once each"):
        replaced(document, "card a", "")


def test_a_missing_marker_is_said_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "doc.md").write_text("nothing")
    assert card.main(["--document", str(tmp_path / "doc.md"), "tiny-video-llava"]) == 1
    assert card.main(["--document", str(tmp_path / "absent.md"), "tiny-video-llava"]) == 1
    said = capsys.readouterr().err
    assert "The document needs <!-- card tiny-video-llava -->" in said
    assert "absent.md cannot be read" in said
    assert "drawing" not in said


def test_the_command_measures_an_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "doc.md"
    document.write_text("head\n<!-- card tiny-video-llava -->\n<!-- /card tiny-video-llava -->\ntail\n")
    arguments = ["--per-kind", "1", "--threads", "1", "--document", str(document), "tiny-video-llava"]
    assert card.main(arguments) == 0
    text = document.read_text()
    assert text.startswith("head\n")
    assert text.endswith("tail\n")
    for kind in TEMPLATES:
        assert f"| {kind} | " in text
    mean = next(line for line in text.splitlines() if line.startswith("| **mean of kinds**"))
    assert mean.count("**") == 2 * 8
    assert "The model takes no images." in text
    assert "AUC of s2" in text
    chosen = load_model(EngineConfig(model="tiny-video-llava")).info.calibration
    assert chosen is not None
    assert f"the reference `{chosen.register}`, rule `{chosen.rule}`, before layer {chosen.cut}" in text
    assert "nan" not in text
    assert "--per-kind 1" in text
    assert "tiny-video-llava: attention, 1 of 1 scenes" in capsys.readouterr().err
