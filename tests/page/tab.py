"""A tab of the browser with the page in it, in the words of whoever uses it."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, Route, expect

from tests.page.site import Site

PATIENCE_MS = 60_000
_REFUSED = re.compile("Failed to load resource")


class Tab:
    """`page` is Playwright's; `asked` are the queries that went out, `errors` the complaints of console and scripts.

    refusals: whether the console may say that requests failed, where a test is about that
    """

    def __init__(self, page: Page, site: Site) -> None:
        self.page = page
        self.site = site
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.refusals = False
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._on_request)

    @classmethod
    @contextmanager
    def opened(cls, browser: Browser, site: Site, **options: Any) -> Iterator["Tab"]:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        tab = cls(context.new_page(), site)
        try:
            tab.page.goto(site.url)
            yield tab
            assert tab.errors == []
            assert [url for url in tab.requests if not tab._may_go(url)] == []
        finally:
            context.close()

    def find(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def upload(self, path: Path | None = None) -> None:
        self.find("#file").set_input_files(path or self.site.clip)
        expect(self.find("#video-status")).to_contain_text("Ready")

    def ask(self, question: str) -> Locator:
        """The turn that the question begins."""
        self.find("#question").fill(question)
        self.find("#ask").click()
        return self.find(".turn").first

    def answer(self, question: str) -> Locator:
        """The turn, with its answer whole."""
        turn = self.ask(question)
        expect(turn.locator("summary")).to_be_visible()
        return turn

    def told(self, path: str, status: int, body: Any, **headers: str) -> None:
        """Have requests to a path answered by the test."""
        text = body if isinstance(body, str) else json.dumps(body)
        kind = "text/event-stream" if isinstance(body, str) else "application/json"

        def fulfil(route: Route) -> None:
            route.fulfill(status=status, body=text, headers={"content-type": kind, **headers})

        self.page.route(path, fulfil)

    def is_within(self, width: int) -> bool:
        """Whether nothing makes the page wider than that."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth") <= width)

    def _may_go(self, url: str) -> bool:
        return url.startswith((f"{self.site.url}/", "blob:")) or url == self.site.clip_url

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not (self.refusals and _REFUSED.match(message.text)):
            self.errors.append(message.text)

    def _on_request(self, request: Request) -> None:
        self.requests.append(request.url)
        if request.url.endswith("/queries"):
            self.asked.append(request.post_data_json)


def events(*events: dict[str, Any]) -> str:
    """A stream of events, as the service writes it."""
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def answer_event(text: str, **more: Any) -> dict[str, Any]:
    """The last event of a stream."""
    return {
        "type": "answer",
        "answer": text,
        "session_id": "session-of-the-test",
        "model": "tiny-video-llava",
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 2,
            "visual_tokens": {"encoded": 8, "stage1": 4, "stage2": 2},
            "cached_tokens": 0,
            "video_seconds": 8.0,
            "gpu_seconds": 0.1,
        },
        "timings": {"fetch_s": 0, "decode_s": 0, "encode_s": 0, "prefill_s": 0.01, "ttft_s": 0.02, "total_s": 0.03},
        "occam": {
            "cache": "none",
            "approximate": False,
            "strategy": "occam",
            "lambda1": 1.0,
            "lambda2": 1.0,
            "options": {},
            "finish_reason": "stop",
        },
        "evidence": None,
    } | more
