"""The pictures in docs/: `make screenshots` writes them there, every other run throws them away."""

import io
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, expect

from tests.page.site import FOLLOW_UP, QUESTION, Site
from tests.page.tab import Tab

pytestmark = pytest.mark.soak

MAX_BYTES = 150_000


def save(tab: Tab, path: Path, height: int) -> None:
    """The top of the page in few colours."""
    tab.page.mouse.move(0, 0)
    width = (tab.page.viewport_size or {"width": 0})["width"]
    clip = {"x": 0, "y": 0, "width": width, "height": height}
    taken = Image.open(io.BytesIO(tab.page.screenshot(full_page=True, clip=clip, caret="hide")))  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    few_colours(taken.convert("RGB")).save(path, optimize=True)
    assert 10_000 < path.stat().st_size <= MAX_BYTES


def few_colours(picture: Image.Image) -> Image.Image:
    """The page's own colours exactly, and those of the videos nearly."""
    own = sorted(picture.getcolors(1 << 24) or [], reverse=True)[:40]
    others = picture.quantize(56, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for _, colour in own for value in colour] + others)  # type: ignore[attr-defined]
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def settled(turns: Locator) -> None:
    """Every frame has its picture: they come as they scroll into view."""
    for frame in turns.locator(".frame").all():
        frame.scroll_into_view_if_needed()
        frame.locator("img").wait_for()
    for picture in turns.locator(".picture").all():
        picture.locator("img").wait_for()
    turns.page.evaluate("scrollTo(0, 0)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_answer_and_what_it_rests_on(browser: Browser, site: Site, screenshots: Path, scheme: str) -> None:
    with Tab.opened(browser, site, color_scheme=scheme) as tab:
        tab.upload()
        tab.answer(QUESTION)
        settled(tab.answer(FOLLOW_UP))
        save(tab, screenshots / f"answer-{scheme}.png", 1080)


def test_a_comparison(tab: Tab, screenshots: Path) -> None:
    tab.upload()
    tab.find("#compare").click()
    tab.ask(QUESTION)
    expect(tab.find(".frame")).to_have_count(16)
    tab.find(".frame").nth(4).click()
    settled(tab.find(".lanes"))
    save(tab, screenshots / "comparison.png", 1040)


def test_errors(tab: Tab, screenshots: Path) -> None:
    tab.refusals = True
    tab.upload()
    tab.find("#start").fill("100")
    expect(tab.ask(QUESTION).locator(".problem")).to_be_visible()
    save(tab, screenshots / "error.png", 900)


def test_on_a_phone(browser: Browser, site: Site, screenshots: Path) -> None:
    with Tab.opened(browser, site, viewport={"width": 360, "height": 740}) as tab:
        tab.upload()
        settled(tab.answer(QUESTION))
        assert tab.is_within(360)
        save(tab, screenshots / "phone.png", 2240)
