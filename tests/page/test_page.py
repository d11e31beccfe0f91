"""The playground in a real browser over the real service: everything that a person does with it."""

import re
import time

import httpx
from playwright.sync_api import Locator, Page, expect
from prometheus_client import REGISTRY

from occam.config import STRATEGIES
from tests.page.site import ANSWER, FOLLOW_UP, QUESTION, EndlessEngine, Site
from tests.page.tab import PATIENCE_MS, Tab, answer_event, events


def selected(turn: Locator) -> Locator:
    return turn.locator(".frame[aria-selected=true]")


def loaded(picture: Locator) -> bool:
    """Whether an image of some size is in it; waits for the image."""
    picture.locator("img").wait_for()
    return bool(picture.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth > 32)"))


def test_a_question_and_a_follow_up(tab: Tab) -> None:
    tab.upload()
    first = tab.answer(QUESTION)
    expect(first.locator(".answer")).to_have_text(ANSWER)
    expect(tab.find("[data-part=strategy]")).to_be_disabled()
    second = tab.answer(FOLLOW_UP)
    expect(tab.find(".turn")).to_have_count(2)
    expect(second.locator(".asked")).to_contain_text(FOLLOW_UP)
    expect(second.locator(".answer")).to_have_text("small")
    assert "session_id" not in tab.asked[0]
    assert tab.asked[1]["session_id"].startswith("session-")
    expect(tab.find("details.rest[open]")).to_have_count(1)

    tab.find("#new").click()
    expect(tab.find(".turn")).to_have_count(0)
    tab.answer(QUESTION)
    assert "session_id" not in tab.asked[2]


def test_tokens_and_seconds_of_every_stage(tab: Tab) -> None:
    tab.upload()
    turn = tab.answer(QUESTION)
    tokens = turn.locator("table.tokens tr")
    assert [row.split()[0] for row in tokens.locator("th").all_text_contents()] == ["encoded", "after", "after"]
    encoded, stage1, stage2 = (int(text) for text in tokens.locator(".number").all_text_contents())
    assert encoded == 288
    assert encoded >= stage1 > stage2 > 0
    bars = [bar.bounding_box()["width"] for bar in tokens.locator(".fill").all()]  # type: ignore[index]
    assert abs(bars[2] / bars[0] - stage2 / encoded) < 0.02
    names = ["fetch", "decode", "encode", "prefill", "first text", "total"]
    assert turn.locator("table.seconds th").all_text_contents() == names
    expect(turn.locator(".chips")).to_contain_text("cache: memory")


def test_frames_are_chosen_by_click_and_by_arrow(tab: Tab) -> None:
    tab.upload()
    turn = tab.answer(QUESTION)
    frames, picture, caption = turn.locator(".frame"), turn.locator(".picture"), turn.locator("figcaption")
    expect(frames).to_have_count(8)
    frames.nth(2).click()
    expect(selected(turn).locator(".time")).to_have_text("2.00 s")
    expect(caption).to_contain_text("frame 2")
    assert loaded(picture)
    third = picture.locator("img").get_attribute("src")
    tab.page.keyboard.press("ArrowRight")
    expect(caption).to_contain_text("frame 3")
    expect(frames.nth(3)).to_be_focused()
    tab.page.keyboard.press("Home")
    expect(caption).to_contain_text("frame 0")
    tab.page.keyboard.press("End")
    expect(caption).to_contain_text("frame 7")
    assert loaded(picture)
    assert picture.locator("img").get_attribute("src") != third
    assert tab.find("#player").evaluate("player => player.currentTime") == 7, "the video shows the moment too"
    kept = [int(label.split()[2]) for label in labels(frames)]
    widths = [bar.evaluate("bar => parseFloat(bar.style.width)") for bar in frames.locator("[data-part=bar]").all()]
    assert [round(36 * width / 100) for width in widths] == kept

    turn.locator("[data-view=scores]").click()
    picture.locator("img").wait_for()
    assert any(url.endswith("7.png?view=scores") for url in tab.requests)


def labels(frames: Locator) -> list[str]:
    return [frame.get_attribute("aria-label") or "" for frame in frames.all()]


def test_the_grid_of_patches_stands_in_for_a_picture_that_is_gone(tab: Tab) -> None:
    tab.refusals = True
    tab.upload()
    tab.told("**/*.png*", 404, {"error": {"message": "gone"}})
    turn = tab.answer(QUESTION)
    amber = turn.locator(".picture canvas").evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
        ".filter((value, place) => place % 4 === 0 && value > 200).length"
    )
    assert amber == int(labels(selected(turn))[0].split()[2]), "as many bright patches as were kept"


def test_two_strategies_beside_one_another(tab: Tab) -> None:
    tab.upload()
    tab.find("#compare").click()
    expect(tab.find(".settings select[data-part=strategy]").nth(1)).to_have_value("none")
    tab.answer(QUESTION)
    lanes = tab.find(".lane")
    expect(lanes.locator("summary")).to_have_count(2)
    a, b = lanes.nth(0), lanes.nth(1)
    assert {query["strategy"] for query in tab.asked} == {"occam", "none"}
    assert a.bounding_box()["y"] == b.bounding_box()["y"]  # type: ignore[index]
    assert int(b.locator("table.tokens .number").nth(2).inner_text()) == 288
    assert int(a.locator("table.tokens .number").nth(2).inner_text()) < 288
    expect(selected(b).locator(".time")).to_have_text(selected(a).locator(".time").inner_text())
    a.locator(".frame").nth(6).click()
    expect(b.locator("figcaption")).to_contain_text("frame 6")

    tab.find("#compare").click()
    expect(tab.find(".lane")).to_have_count(1)
    expect(tab.find(".turn")).to_have_count(0)


def test_settings_follow_model_and_strategy(tab: Tab) -> None:
    tab.upload()
    strategy, model = tab.find("[data-part=strategy]"), tab.find("[data-part=model]")
    assert strategy.locator("option").evaluate_all("all => all.map(each => each.value)") == list(STRATEGIES)
    slider, number = tab.find("[aria-label='λ₁ stage I']"), tab.find("[aria-label='λ₁ stage I, number']")
    default = number.input_value()
    strategy.select_option("none")
    expect(slider).to_be_disabled()
    strategy.select_option("visionzip")
    budget = tab.find("[aria-label='budget, number']")
    expect(budget).to_have_value("0.25")
    strategy.select_option("occam")
    expect(number).to_have_value(default)
    slider.focus()
    tab.page.keyboard.press("End")
    expect(number).to_have_value("2")
    number.fill("0")
    expect(slider).to_have_value("0")
    tab.find("#start").fill("2")
    tab.find("#end").fill("6")
    tab.find("#evidence").uncheck()
    turn = tab.answer(QUESTION)
    asked = tab.asked[0]
    assert (asked["lambda1"], asked["start_s"], asked["end_s"], asked["evidence"]) == (0, 2, 6, False)
    assert "lambda2" not in asked, "what was left alone is the service's to choose"
    expect(turn.locator(".frame")).to_have_count(0)
    assert turn.locator("table.tokens .number").all_text_contents()[:2] == ["144", "144"], (
        "the four frames of the range"
    )

    tab.find("#new").click()
    model.select_option("fake")
    expect(strategy.locator("option[value=occam]")).to_be_disabled()


def test_a_video_by_its_address(tab: Tab) -> None:
    tab.find("#url").fill(tab.site.clip_url)
    tab.find("#url").press("Enter")
    expect(tab.find("#video-status")).to_contain_text("8.00 s, 8 frames. Ready.")
    expect(tab.find("#player")).to_have_js_property("duration", 8)
    tab.answer(QUESTION)
    tab.find("#forget").click()
    expect(tab.find("#video-status")).to_have_text("Forgotten.")
    expect(tab.find(".turn")).to_have_count(0)
    tab.find("#question").fill(QUESTION)
    expect(tab.find("#ask")).to_be_disabled()


def test_a_video_is_dropped_and_plays_from_where_it_is(tab: Tab) -> None:
    data = tab.page.evaluate_handle(
        "async () => { const transfer = new DataTransfer(); transfer.items.add("
        "new File([await (await fetch('/static/icon.svg')).blob()], 'dropped.mp4')); return transfer; }"
    )
    tab.told("**/v1/videos", 200, video("ready"))
    tab.page.dispatch_event("#drop", "dragover", {"dataTransfer": data})
    expect(tab.find("#drop")).to_have_class("drop over")
    tab.page.dispatch_event("#drop", "drop", {"dataTransfer": data})
    expect(tab.find("#video-name")).to_have_text("dropped.mp4")
    expect(tab.find("#video-status")).to_contain_text("Ready")
    expect(tab.find("#player-note")).to_contain_text("cannot play")


def video(status: str, **more: object) -> dict[str, object]:
    return {"id": "video-1", "status": status, "duration_s": 75.5, "frames": 1, "digest": "0", "error": None} | more


def test_a_video_that_is_still_encoded_may_be_asked_about(tab: Tab) -> None:
    tab.refusals = True
    tab.told("**/v1/videos", 200, video("processing"))
    tab.told("**/v1/videos/video-1", 200, video("processing"))
    tab.find("#url").fill(tab.site.clip_url)
    tab.find("#url").press("Enter")
    expect(tab.find("#video-status")).to_contain_text("1:15.5, 1 frame. Encoding its frames")
    tab.find("#question").fill(QUESTION)
    expect(tab.find("#ask")).to_be_enabled()
    error = {"type": "invalid_request_error", "code": "unsupported_video", "message": "It breaks off."}
    tab.told("**/v1/videos/video-1", 200, video("failed", error=error))
    expect(tab.find("#video-problem")).to_contain_text("It breaks off.")
    expect(tab.find("#ask")).to_be_disabled()


def test_progress_of_every_stage_is_shown(tab: Tab) -> None:
    tab.upload()
    steps = [("fetch", 1, 1), ("decode", 8, 8), ("encode", 3, 8)]
    shown = [{"type": "progress", "stage": s, "done": d, "total": t, "seconds": 0.5} for s, d, t in steps]
    # The stream breaks off here, so that what it has come to can be looked at.
    tab.told("**/queries", 200, events(*shown).replace("data: [DONE]\n\n", ": keep-alive\n\n"))
    turn = tab.ask(QUESTION)
    expect(turn.locator(".problem")).to_contain_text("The connection ended before the answer did.")
    stages = turn.locator(".stages li")
    assert stages.all_text_contents() == [
        "Fetch1 of 1 · 0.5 s", "Decode frames8 of 8 · 0.5 s", "Encode frames3 of 8 · 0.5 s"
    ]  # fmt: skip
    assert stages.nth(2).locator("progress").evaluate("bar => bar.position") == 3 / 8


def test_text_appears_as_it_is_written_and_cancel_stops_the_service(tab: Tab) -> None:
    tab.upload()
    tab.find("[data-part=model]").select_option("fake")
    before = cancelled()
    turn = tab.ask("an endless question")
    expect(turn.locator(".answer")).to_contain_text(" and 3")
    expect(turn.locator(".answer")).to_have_attribute("aria-busy", "true")
    expect(tab.find("#cancel")).to_be_focused()
    tab.page.keyboard.press("Enter")
    expect(turn).to_contain_text("Cancelled.")
    expect(tab.find("#question")).to_be_focused()
    wait_for(tab.page, lambda: cancelled() == before + 1)
    words = next(EndlessEngine.words)
    tab.answer("what?")
    assert next(EndlessEngine.words) <= words + 2, "passes of another answer write no more of this one"


def cancelled() -> float:
    return REGISTRY.get_sample_value("occam_cancellations_total", {"stage": "generate"}) or 0.0


def wait_for(page: Page, condition: object) -> None:
    """Wait for something in this process while the browser goes on."""
    assert callable(condition)
    ends = time.monotonic() + PATIENCE_MS / 1000
    while not condition():
        assert time.monotonic() < ends
        page.wait_for_timeout(20)


def test_the_keyboard_is_enough(tab: Tab) -> None:
    keys = tab.page.keyboard
    keys.press("Tab")
    expect(tab.find(".skip")).to_be_focused()
    tab_to(tab, "#url")
    keys.type(tab.site.clip_url)
    keys.press("Enter")
    expect(tab.find("#video-status")).to_contain_text("Ready")
    tab_to(tab, "[data-part=strategy]")
    keys.press("ArrowDown")
    expect(tab.find("[data-part=strategy]")).to_have_value("none")
    keys.press("ArrowUp")
    tab_to(tab, "#question")
    keys.type(QUESTION)
    keys.press("Enter")
    expect(tab.find(".frame")).to_have_count(8)
    tab_to(tab, ".frame[aria-selected=true]")
    keys.press("Home")
    keys.press("ArrowRight")
    expect(tab.find("figcaption")).to_contain_text("frame 1")
    ring = tab.find(".frame:focus").evaluate("frame => getComputedStyle(frame).outlineStyle")
    assert ring == "solid", "what has the focus can be seen"


def tab_to(tab: Tab, selector: str) -> None:
    for _ in range(40):
        tab.page.keyboard.press("Tab")
        if tab.find(selector).evaluate_all("all => all.includes(document.activeElement)"):
            return
    raise AssertionError(f"Tab does not come to {selector}")


def test_nothing_is_wider_than_a_phone(tab: Tab) -> None:
    tab.page.set_viewport_size({"width": 360, "height": 740})
    assert tab.is_within(360)
    tab.find("#key-panel summary").click()
    assert tab.is_within(360)
    tab.upload()
    tab.find("#compare").click()
    tab.ask(QUESTION)
    expect(tab.find(".frame")).to_have_count(16)
    assert tab.is_within(360)
    tab.refusals = True
    error = {"code": "c" * 99, "message": "m" * 999, "request_id": "r" * 99}
    tab.told("**/queries", 422, {"error": error})
    tab.ask("w" * 999)
    expect(tab.find(".problem")).to_have_count(2)
    assert tab.is_within(360)


def test_every_control_has_a_name(tab: Tab) -> None:
    tab.upload()
    tab.find("#compare").click()
    tab.ask(QUESTION)
    expect(tab.find(".frame")).to_have_count(16)
    tab.find("#key-panel summary").click()
    seen = [line.strip() for line in tab.find("body").aria_snapshot().splitlines()]
    kinds = "button|textbox|slider|spinbutton|combobox|checkbox|link|listbox|option|log|region"
    controls = [line for line in seen if re.match(f"- ({kinds})\\b", line)]
    assert len(controls) > 50
    assert [line for line in controls if not re.match(r'- \w+ ".+"', line)] == []


def test_files_are_asked_after_and_answered_from_the_browsers_cache(site: Site) -> None:
    for path in ("/", "/static/app.js"):
        whole = httpx.get(site.url + path)
        assert whole.status_code == 200
        assert whole.headers["cache-control"] == "no-cache"
        assert "script-src 'self';" in whole.headers["content-security-policy"]
        assert "unsafe" not in whole.headers["content-security-policy"]
        again = httpx.get(site.url + path, headers={"If-None-Match": whole.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for path in ("/static/../settings.py", "/static/%2e%2e/settings.py", "/static/nothing.js"):
        missing = httpx.get(site.url + path)
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "not_found"


def test_an_answer_without_text_says_so(tab: Tab) -> None:
    tab.upload()
    tab.told("**/queries", 200, events(answer_event("")))
    expect(tab.answer(QUESTION).locator(".answer")).to_have_text("The model wrote nothing.")
