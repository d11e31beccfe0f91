"""What can be chosen is checked where it is made: a misspelt mode must not run as another one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from occam.calibration import Calibration
from occam.config import OccamToken, SamplingParams
from occam.errors import InvalidInput, NotCalibrated

PRUNING = OccamToken(lambda1=0.5, lambda2=1.0, cut=3, register="zero_token")
WEIGHTS = "ab" * 32
CALIBRATION = Calibration(
    weights=WEIGHTS,
    cut=3,
    register="neurons",
    rule="top_p",
    neurons=((0, 5), (1, 17)),
    lambda1=0.5,
    lambda2=2,
    statistics={"n": 1.5},
)


@pytest.mark.parametrize(
    "change",
    [
        {"register": "neuron"},
        {"evaluators": "turns"},
        {"placement": "afternorm"},
        {"lambda1": -1.0},
        {"lambda2": float("nan")},
        {"cut": 0},
        {"min_tokens": -1},
    ],
    ids=str,
)
def test_a_pruning_that_cannot_be_names_its_field(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(change))) as caught:
        replace(PRUNING, **change)
    assert caught.value.param == next(iter(change))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 9e-4},
        {"temperature": 2.1},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": 2**63},
        {"seed": -(2**63) - 1},
    ],
    ids=str,
)
def test_sampling_that_cannot_be_names_its_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=f"{next(iter(wrong))} must") as caught:
        SamplingParams(**wrong)
    assert caught.value.param == next(iter(wrong))


def test_an_artefact_is_read_as_it_was_written(tmp_path: Path) -> None:
    CALIBRATION.save(tmp_path / "occam.json")
    assert Calibration.load(tmp_path / "occam.json", WEIGHTS) == CALIBRATION


@pytest.mark.parametrize(
    ("statistics", "says"),
    [
        ({}, "default reference: neurons, rule top_p"),
        (
            {"accuracy": 0.75, "accuracy_published": 0.7, "questions": 400},
            "default reference: neurons, rule top_p; the published rule was worse by 5.0 points on 400 questions",
        ),
        ({"accuracy": 0.7, "accuracy_published": 0.7, "questions": 400}, "default reference: neurons, rule top_p"),
    ],
)
def test_the_verdict_names_the_default_and_what_the_published_rule_lost(
    statistics: dict[str, float], says: str
) -> None:
    judged = replace(CALIBRATION, statistics=statistics)
    assert judged.verdict == says
    assert (judged.defaults.register, judged.defaults.rule) == ("neurons", "top_p")


def test_a_new_artefact_keeps_the_former_one_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "occam.json"
    CALIBRATION.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["occam.json"]
    newer = replace(CALIBRATION, lambda2=3.0)
    newer.save(path)
    assert Calibration.load(path, WEIGHTS) == newer
    assert Calibration.load(tmp_path / "occam.json.bak", WEIGHTS) == CALIBRATION

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InvalidInput, match=r"occam.json cannot be written: No space left"):
        CALIBRATION.save(path)
    assert Calibration.load(path, WEIGHTS) == newer, "what cannot be written whole is not written at all"


def test_stale_is_not_broken(tmp_path: Path) -> None:
    """Another release's artefact, or another checkpoint's, asks for a calibration; a damaged one is at fault itself."""
    path = tmp_path / "occam.json"
    CALIBRATION.save(path)
    with pytest.raises(NotCalibrated, match="made for weights abab"):
        Calibration.load(path, "cd" * 32)
    path.write_text('{"version": 1}')
    with pytest.raises(NotCalibrated, match="has version 1"):
        Calibration.load(path, WEIGHTS)
    path.write_text("{")
    with pytest.raises(InvalidInput) as caught:
        Calibration.load(path, WEIGHTS)
    assert not isinstance(caught.value, NotCalibrated)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cut": 0}, "cut must be an integer of at least 1, got '0'"),
        ({"cut": True}, "cut must be an integer"),
        ({"cut": 3.0}, "cut must be an integer"),
        ({"register": "neuron"}, "register must be one of neurons, zero_token, mean_threshold, got 'neuron'"),
        ({"register": ["neurons"]}, "register must be one of"),
        ({"evaluators": "words"}, "evaluators must be one of question, turn"),
        ({"lambda1": -0.1}, "lambda1 must be a finite number"),
        ({"lambda1": "0.5"}, "lambda1 must be a finite number"),
        ({"lambda2": float("inf")}, "lambda2 must be a finite number"),
        ({"neurons": [[0, -1]]}, "neurons must be pairs"),
        ({"neurons": [[0, 1, 2]]}, "neurons must be pairs"),
        ({"neurons": [[0, 1.5]]}, "neurons must be pairs"),
        ({"neurons": 5}, "neurons must be pairs"),
        ({"statistics": {"n": "many"}}, "statistics must be finite numbers"),
        ({"statistics": []}, "statistics must be finite numbers"),
        ({"weights": 5}, "made for weights 5"),
        ({"version": 2}, "has version 2"),
        ({"rule": "median"}, "rule must be one of register, mean, first_token, top_p, top_k, got 'median'"),
        ({"searched": None}, "searched must be a text"),
        ({"measured": 5}, "measured must be a text, or null"),
        ({"lambda1": 10**400}, "lambda1 must be a finite number"),
        ({"more": 1}, "exactly the fields"),
    ],
    ids=str,
)
def test_an_artefact_that_cannot_be_is_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    path = tmp_path / "occam.json"
    CALIBRATION.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InvalidInput, match=match) as caught:
        Calibration.load(path, WEIGHTS)
    assert caught.value.param == "model"


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "{}", '{"version": 3}', "[" * 100_000])
def test_a_file_that_is_no_artefact_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "occam.json").write_text(text)
    with pytest.raises(InvalidInput):
        Calibration.load(tmp_path / "occam.json", WEIGHTS)
