"""docs/settings.md: a row for each setting, with the default that it has."""

import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest

from occam.errors import InvalidInput
from services.settings import PREFIX, Settings

_PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
_ROW = re.compile(r"\| `OCCAM_(\w+)` \| (?:`(?P<said>[^`]+)`|empty)(?P<unit> s)?(?: \((\d+) (\w+)\))? \| .+\. \|")
_BY_THE_LAUNCHER = {"kv_detail", "state_detail", "log_socket"}
_IN_ROUND = {"MiB": 1 << 20, "GiB": 1 << 30, "min": 60, "h": 3600, "day": 86_400, "days": 86_400}


def _rows() -> list[re.Match[str]]:
    lines = [line for line in _PAGE.read_text().splitlines() if line.startswith(f"| `{PREFIX}")]
    rows = [_ROW.fullmatch(line) for line in lines]
    assert None not in rows, lines[rows.index(None)]
    return [row for row in rows if row]


def test_the_page_has_every_setting_once() -> None:
    named = Counter(row[1] for row in _rows())
    assert named == Counter(each.name.upper() for each in fields(Settings) if each.name not in _BY_THE_LAUNCHER)


@pytest.mark.parametrize("row", _rows(), ids=lambda row: row[1])
def test_a_row_has_the_default_as_it_would_be_set(row: re.Match[str]) -> None:
    name = row[1].lower()
    default = getattr(Settings(), name)
    assert getattr(Settings.load({PREFIX + row[1]: row["said"] or ""}), name) == default
    assert bool(row["unit"]) == name.endswith(("_s", "_seconds"))
    assert row[4] or not (name.endswith("_bytes") and default)
    assert row[4] is None or int(row[4]) * _IN_ROUND[row[5]] == default


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"OCCAM_MAX_IMAGES": "-1"}, "OCCAM_MAX_IMAGES must be 0 or more and finite, got -1."),
        ({"OCCAM_KV_NODE_BYTES": "-5"}, "OCCAM_KV_NODE_BYTES must be 0 or more and finite, got -5."),
        ({"OCCAM_MAX_VIDEO_BYTES": "0"}, "OCCAM_MAX_VIDEO_BYTES must be above 0 and finite, got 0."),
        ({"OCCAM_DEADLINE_S": "inf"}, "OCCAM_DEADLINE_S must be above 0 and finite, got inf."),
        ({"OCCAM_KV_TTL_S": "nan"}, "OCCAM_KV_TTL_S must be above 0 and finite, got nan."),
        ({"OCCAM_MAX_QUEUED": "-1"}, "OCCAM_MAX_QUEUED must be 0 or more and finite, got -1."),
    ],
)
def test_numbers_that_mean_nothing_stop_the_start(said: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Settings.load(said)
    assert caught.value.message == message
