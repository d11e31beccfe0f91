"""What is printed of the bench's figures, and the margins of what flipped."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from occam.errors import InvalidInput
from occam.stats import VisualTokenCounts
from occam.types import Answer, Evidence, FrameEvidence, Turn
from tests.bench import __main__ as command
from tests.bench import flips, soak
from tests.bench.approximation import Pair, compared, differences_table, sides_table
from tests.bench.flips import Asked, kept_margin, text_margin
from tests.bench.report import Report, Table, figure, publish
from tests.bench.rounds import Rounds
from tests.states import make_state

TABLE = Table(title="Speed", columns=("", "s"), rows=(("ours", 0.12345), ("stock", None)), note="Beside each other.")
REPORT = Report(section="speed", model="small", device="cpu", facts={"threads": "1"}, tables=(TABLE,))


def answer(ids: tuple[int, ...], kept: list[list[bool]]) -> Answer:
    """Two frames of two patches with scores .1 to .4 against a threshold of .25."""
    scores = np.array([[0.1, 0.2], [0.3, 0.4]], dtype=np.float32)
    frames = tuple(
        FrameEvidence(
            medium=0, index=at, pts_s=0.0, of=2, grid=(1, 2), stage1=np.ones((1, 2), bool),
            stage2=np.array([kept[at]]), scores=scores[at][None],
        )
        for at in range(2)
    )  # fmt: skip
    return Answer(
        text="", turn=Turn(suffix_ids=(), generated_ids=ids), finish_reason="stop", prompt_tokens=0, reused_tokens=0,
        completion_tokens=len(ids), visual_tokens=VisualTokenCounts(encoded=4, stage1=4, stage2=2),
        evidence=Evidence(threshold=0.25, frames=frames),
    )  # fmt: skip


def test_margins_are_those_of_what_differs() -> None:
    alone = answer((3, 1, 2), [[False, False], [True, True]])
    assert kept_margin(alone, answer((3, 1, 2), [[False, False], [True, True]]), lambda2=0.5) is None
    other = answer((3, 0), [[False, True], [True, False]])
    assert kept_margin(alone, other, lambda2=0.5) == pytest.approx(0.15 / 0.5)
    logits = [torch.tensor([0.0, 0.5, 0.25, 9.0]), torch.tensor([0.25, 1.0, -1.0, 0.0]), torch.tensor([0.0, 0, 4, 1])]
    assert text_margin(alone, other, logits) == 0.75
    assert text_margin(alone, answer((3, 1), [[False, False], [True, True]]), logits) == 3.0


def test_what_int8_changed_is_compared_up_to_where_the_texts_part() -> None:
    exact = answer((3, 1, 2), [[False, False], [True, True]])
    other = answer((3, 0, 2), [[False, True], [True, False]])
    steps = [torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0])]
    changes = [torch.tensor([0.0, 0.5]), torch.tensor([-2.0, 0.0]), torch.tensor([9.0, 0.0])]
    moved = [step + change for step, change in zip(steps, changes, strict=True)]
    sides = [Asked(make_state(), "what", logits) for logits in (steps, moved)]
    same = compared([exact, exact], [sides[0], sides[0]], "", lambda2=0.5)
    assert same == Pair(exact=True, int8=True, text=False, kept=2, flipped=0, distance=None, logits=0.0)
    pair = compared([exact, replace(other, text="red")], sides, "red", lambda2=0.5)
    assert pair == Pair(
        exact=False, int8=True, text=True, kept=2, flipped=2, distance=pytest.approx(0.15 / 0.5), logits=2.0
    )
    right, nbytes = sides_table("", [same, pair], "a state", (8, 2)).rows
    assert right[1:3] == (50.0, 100.0)
    assert nbytes == ("bytes of a state", 8, 2, 0.25)
    differences = differences_table([same, pair])
    assert [count for _, count, _ in differences.rows] == [1, 1, 0, 1]
    assert "1 a question, of 2 kept; at most 3.00e-01" in differences.note


def test_a_ratio_is_that_of_the_rounds() -> None:
    rounds = Rounds({"slow": [4.0, 30.0, 8.0], "fast": [2.0, 3.0, 4.0]})
    assert rounds.ratio("slow", "fast") == 2.0
    assert rounds.median("slow") == 8.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (7, "7"), ("x", "x"), (0.012345, "0.0123"), (12.3456, "12.3"), (12345.6, "12,346"), (1.0, "1.00")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_reports_go_to_json_and_between_markers(tmp_path: Path) -> None:
    path, document = tmp_path / "speed.json", tmp_path / "page.md"
    document.write_text("before\n<!-- speed small cpu -->\nold\n<!-- /speed small cpu -->\nbehind\n")
    publish([REPORT], path, document)
    [stored] = json.loads(path.read_text())
    assert stored["tables"][0]["rows"] == [["ours", 0.12345], ["stock", None]]
    text = document.read_text()
    assert "| ours | 0.123 |" in text
    assert "threads: 1" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("behind\n")
    document.write_text("no markers")
    with pytest.raises(InvalidInput, match="speed small cpu"):
        publish([REPORT], None, document)
    assert REPORT.text().splitlines()[-3:] == ["ours   0.123", "stock       ", "Beside each other."]


def section(*failures: str) -> SimpleNamespace:
    """One that measures nothing, and fails by these."""
    return SimpleNamespace(
        MODELS=("small",),
        add_options=lambda parser: None,
        measure=lambda model, args: replace(REPORT, failures=failures),
    )


def test_a_bar_that_was_missed_ends_the_command_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "SECTIONS", {"good": section(), "bad": section("too slow")})
    for names, status in ((["good"], 0), (["bad"], 1), (["bad", "good"], 1)):
        monkeypatch.setattr(sys, "argv", ["bench", *names])
        assert command.main() == status
        assert ("FAIL speed small cpu: too slow" in capsys.readouterr().out) == bool(status)


def test_a_soak_fails_by_errors_and_by_memory_that_grows() -> None:
    assert soak.failures_of(0, 600.0, 630.0) == ()
    assert soak.failures_of(0, 600.0, 400.0) == ()
    assert soak.failures_of(2, 600.0, 600.0) == ("2 errors",)
    assert soak.failures_of(0, 600.0, 631.0) == ("memory grew from 600 to 631 MiB, more than 1.05 times",)
    assert len(soak.failures_of(1, 600.0, 700.0)) == 2


def test_flips_fail_above_one_in_a_thousand() -> None:
    assert flips.too_many(0, 1000) == flips.too_many(1, 1000) == ()
    assert flips.too_many(2, 1000) == ("0.2 % of 1000 questions flipped, of which 0.1 % may",)
