"""Pictures of what was kept, of strategies that decide at every place there is."""

from pathlib import Path

import pytest
from PIL import Image

from occam.config import EngineConfig
from occam.engine import Engine
from pipelines.evaluation.harness.matching import Setting
from pipelines.evaluation.harness.pictures import LABEL, SIDE, draw_kept
from pipelines.evaluation.tasks.rendered import rendered_task


@pytest.mark.parametrize("name", ["cdpruner", "visionzip", "fastv"])
def test_a_row_a_strategy_and_a_column_a_view(tmp_path: Path, name: str) -> None:
    engine = Engine.load(EngineConfig(threads=1))
    [clip, *_] = rendered_task(("video",), 6, 1, seed=0).clips
    settings = [
        Setting(strategy="none", budget=None, name="none"),
        Setting(strategy=name, budget=0.25, name=name, options={"budget": 0.25}),
    ]
    draw_kept(engine, clip, settings, 4, tmp_path / "kept.png")
    picture = Image.open(tmp_path / "kept.png").convert("L")
    views = len(clip.sample(engine.info).frames())
    assert picture.width == views * SIDE
    assert picture.height > 2 * (SIDE // 2 + LABEL)
    rows = [picture.crop((0, top, picture.width, top + picture.height // 2)) for top in (0, picture.height // 2)]
    light = [sum(row.histogram()[i] * i for i in range(256)) for row in rows]
    assert light[1] < 0.8 * light[0], "what was dropped is darkened"
