"""The playground when things go wrong, or are meant to do harm."""

import pytest
from playwright.sync_api import expect

from tests.page.site import ANSWER, QUESTION
from tests.page.tab import Tab, answer_event, events

HOSTILE = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>'


@pytest.fixture(autouse=True)
def _refusals(tab: Tab) -> None:
    tab.refusals = True


def test_what_is_no_video_is_refused_in_plain_words(tab: Tab) -> None:
    tab.find("#url").fill(tab.site.not_a_video_url)
    tab.requests.clear()
    tab.find("#url").press("Enter")
    problem = tab.find("#video-problem .problem")
    expect(problem).to_contain_text("That is not a video the service can read")
    expect(problem).to_contain_text("unsupported_video")
    expect(problem).to_contain_text("HTTP 415")
    expect(problem.locator(".facts")).to_contain_text("request ")
    tab.requests.remove(tab.site.not_a_video_url)
    tab.upload()
    expect(tab.find(".problem")).to_have_count(0)


def test_a_key_is_asked_for_sent_and_kept_for_the_tab_only(tab: Tab) -> None:
    def needs_key(route, request) -> None:  # type: ignore[no-untyped-def]
        if request.headers.get("authorization") == "Bearer occam-secret":
            route.continue_()
        else:
            error = {"type": "authentication_error", "code": "invalid_api_key", "message": "Give a key."}
            route.fulfill(status=401, json={"error": error})

    tab.page.route("**/v1/**", needs_key)
    tab.page.reload()
    expect(tab.find("#notice")).to_contain_text("The service wants a valid API key. Give a key.")
    expect(tab.find("#key")).to_be_focused()
    tab.page.keyboard.type("occam-secret")
    tab.page.keyboard.press("Enter")
    expect(tab.find("#notice")).to_be_hidden()
    tab.find("#key-panel summary").click()
    tab.upload()
    turn = tab.answer(QUESTION)
    turn.locator(".picture img").wait_for()
    stored = tab.page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]")
    assert stored == [["occam-secret"], [], ""]
    tab.page.reload()
    expect(tab.find("#key")).to_have_value("occam-secret")


def test_a_service_that_is_away_and_comes_back(tab: Tab) -> None:
    tab.page.route("**/v1/models", lambda route: route.abort())
    tab.page.reload()
    expect(tab.find("#notice")).to_contain_text("The service cannot be reached.")
    tab.page.unroute("**/v1/models")
    tab.find("#retry").click()
    expect(tab.find("#notice")).to_be_hidden()
    tab.upload()

    tab.page.route("**/queries", lambda route: route.abort())
    turn = tab.ask(QUESTION)
    expect(turn.locator(".problem")).to_contain_text("The service cannot be reached")
    tab.page.unroute("**/queries")
    expect(tab.answer(QUESTION).locator(".answer")).to_have_text(ANSWER)

    tab.page.context.set_offline(True)
    expect(tab.find("#notice")).to_contain_text("You are offline.")
    tab.page.context.set_offline(False)
    expect(tab.find("#notice")).to_be_hidden()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (429, "Too many requests for now"),
        (500, "The service failed"),
        (503, "The service is busy or starting"),
        (504, "That took too long"),
    ],
)
def test_troubles_of_the_service_have_words_of_their_own(tab: Tab, status: int, words: str) -> None:
    tab.upload()
    error = {"code": "some_code", "message": "The limit is 3.", "request_id": "request-7"}
    tab.told("**/queries", status, {"error": error}, **{"retry-after": "12"})
    problem = tab.ask(QUESTION).locator(".problem")
    expect(problem.locator(".headline")).to_have_text(words)
    expect(problem).to_contain_text("The limit is 3.")
    expect(problem.locator(".facts")).to_have_text(
        f"code some_code · HTTP {status} · request request-7 · try again in 12 s"
    )


def test_an_error_within_a_stream_and_a_proxys_page(tab: Tab) -> None:
    tab.upload()
    error = {"type": "error", "error": {"code": "replica_lost", "message": "It died.", "request_id": "request-8"}}
    tab.told("**/queries", 200, events({"type": "text", "text": "half an "}, error))
    turn = tab.ask(QUESTION)
    expect(turn.locator(".problem")).to_contain_text("It died.")
    expect(turn.locator(".facts")).to_have_text("code replica_lost · request request-8")
    expect(turn.locator(".answer")).to_have_text("half an ")
    expect(turn.locator(".answer")).to_have_attribute("aria-busy", "false")
    tab.told("**/queries", 502, "<html><script>window.harmed=1</script>bad gateway</html>")
    expect(tab.ask(QUESTION).locator(".problem")).to_contain_text("The service failed")


def test_hostile_text_stays_text(tab: Tab) -> None:
    tab.find("#url").fill(f"javascript:{HOSTILE}")
    tab.find("#url").press("Enter")
    expect(tab.find("#video-name")).to_have_text(f"javascript:{HOSTILE}")
    expect(tab.find("#video-problem .problem")).to_be_visible()
    expect(tab.find("#player")).not_to_have_attribute("src", "javascript")
    tab.find("#file").set_input_files(
        {"name": f"{HOSTILE}.mp4".replace("/", "_"), "mimeType": "video/mp4", "buffer": tab.site.clip.read_bytes()}
    )
    expect(tab.find("#video-status")).to_contain_text("Ready")
    expect(tab.find("#video-name")).to_contain_text("<img src=x")
    frame = {
        "medium": 0, "index": 0, "pts_s": 0.0, "kept": 1, "of": 1, "threshold": None, "mask": [[True]],
        "scores": [[None]], "overlay": "https://elsewhere.example/steal.png",
    }  # fmt: skip
    evidence = {"frames": [frame, {**frame, "overlay": "//elsewhere.example/steal.png"}], "spans": []}
    text = {"type": "text", "text": HOSTILE}
    tab.told("**/queries", 200, events(text, answer_event(HOSTILE, evidence=evidence, session_id=HOSTILE)))
    turn = tab.answer(HOSTILE)
    expect(turn.locator(".answer")).to_have_text(HOSTILE)
    expect(turn.locator("[data-part=question]")).to_have_text(HOSTILE)
    error = {"code": HOSTILE, "message": HOSTILE, "request_id": HOSTILE}
    tab.told("**/queries", 422, {"error": error})
    expect(tab.ask(QUESTION).locator(".problem")).to_contain_text(HOSTILE)
    assert tab.page.evaluate("window.harmed") is None
    assert tab.find("img[src=x], script:not([src])").count() == 0


def test_the_browser_itself_refuses_markup_and_foreign_scripts(tab: Tab) -> None:
    """The policy behind the page's own care."""
    markup = "() => { try { document.body.innerHTML = '<b>'; } catch (error) { return error.name; } }"
    assert tab.page.evaluate(markup) == "TypeError"
    assert tab.page.evaluate("() => fetch('https://elsewhere.example/').catch(error => error.name)") == "TypeError"
    assert any("TrustedHTML" in error for error in tab.errors)
    assert any("connect-src" in error for error in tab.errors)
    tab.errors.clear()
    tab.requests[:] = [url for url in tab.requests if "elsewhere" not in url]


def test_events_are_read_however_the_network_cuts_them(tab: Tab) -> None:
    stream = 'data: {"type": "text", "text": "äöü €"}\r\n\r\n: keep-alive\n\ndata: {"n": 2}\n\ndata: [DONE]\n\n'
    read = """async ([bytes, size]) => {
      const { eventsOf } = await import("/static/stream.js");
      const body = new ReadableStream({ start(controller) {
        for (let at = 0; at < bytes.length; at += size) controller.enqueue(new Uint8Array(bytes.slice(at, at + size)));
        controller.close();
      } });
      const events = [];
      for await (const event of eventsOf(body)) events.push(event);
      return events;
    }"""
    for size in (1, 2, 3, 7, 1000):
        found = tab.page.evaluate(read, [list(stream.encode()), size])
        assert found == [{"type": "text", "text": "äöü €"}, {"n": 2}]
