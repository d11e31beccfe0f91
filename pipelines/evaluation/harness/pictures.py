"""What each strategy kept of a clip for a question: a row a strategy, a column a view, the rest darkened."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from occam.config import SamplingParams
from occam.engine import Engine
from occam.types import Answer, FrameBatch
from pipelines.evaluation.harness.matching import Setting
from pipelines.evaluation.tasks.task import Clip, Item

SIDE = 160
"""Pixels of the longer side of a view."""
LABEL = 14
DARKENED = 0.2
VIEWS = 8


def draw_kept(engine: Engine, clip: Clip, settings: Sequence[Setting], max_new_tokens: int, path: Path) -> None:
    """The clip's first question under each of these settings."""
    item = clip.items[0]
    frames = clip.sample(engine.info).frames()
    rows = []
    for setting in settings:
        pruning = engine.asked(setting.pruning(engine), item.question)
        state = engine.state_of(frames, pruning)
        answer = engine.ask(state, item.question, pruning, SamplingParams(max_new_tokens=max_new_tokens))
        rows.append(_row(setting, answer, frames))
    # A palette is a third of the bytes, and shows as much.
    _stacked(item, rows).quantize().save(path, optimize=True)


def _row(setting: Setting, answer: Answer, frames: FrameBatch) -> Image.Image:
    """The views side by side: of several frames taken together the first, of an image's tiles the whole image."""
    masks: dict[int, npt.NDArray[np.bool_]] = {}
    for view in answer.evidence.frames:
        masks.setdefault(view.index, view.stage2)
    places = {int(index): place for place, index in enumerate(frames.indices)}
    views = [_view(frames.frames[places[index]], kept) for index, kept in list(masks.items())[:VIEWS]]
    tokens = answer.visual_tokens
    share = tokens.stage2 / max(1, tokens.encoded)
    line = Image.new("RGB", (sum(view.width for view in views), views[0].height + LABEL), "white")
    text = f"{setting.label}: {tokens.stage2} of {tokens.encoded} ({share:.1%}): {answer.text.strip()}"
    ImageDraw.Draw(line).text((2, 1), _plain(text), fill="black")
    left = 0
    for picture in views:
        line.paste(picture, (left, LABEL))
        left += picture.width
    return line


def _view(frame: npt.NDArray[np.uint8], kept: npt.NDArray[np.bool_]) -> Image.Image:
    height, width = frame.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    light = np.where(kept, 255, round(255 * DARKENED)).astype(np.uint8)
    shade = Image.fromarray(light).resize(size, Image.Resampling.NEAREST)
    picture = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
    return Image.composite(picture, Image.new("RGB", size), shade)


def _stacked(item: Item, rows: Sequence[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (max(row.width for row in rows), LABEL + sum(row.height for row in rows)), "white")
    ImageDraw.Draw(page).text((2, 1), _plain(f"{item.question.splitlines()[0]} ({item.answer})"), fill="black")
    top = LABEL
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    return page


def _plain(text: str) -> str:
    """What the built-in font can draw."""
    return text.replace("\n", " ").encode("latin-1", "replace").decode("latin-1")
