"""The page in a real browser: fixtures, and what is asked of every page whatever the test is about."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.page.site import Site, serving
from tests.page.tab import Tab
from tests.redis_server import RedisServer

# Taken out of the environment, since the service refuses settings that it does not know.
_NAMED = os.environ.pop("OCCAM_BROWSER", "")
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, [_NAMED] if _NAMED else _NAMES)), None)
    if found is None:
        pytest.skip("The playground is tested in Chromium: `make browser` installs it, or OCCAM_BROWSER names one.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(browser: Browser, shared_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(tmp_path_factory.mktemp("site"), shared_redis.url) as site:
        yield site


@pytest.fixture
def tab(browser: Browser, site: Site) -> Iterator[Tab]:
    """The page, opened; at the end nothing may have gone wrong in it, and no request may have left its origin."""
    with Tab.opened(browser, site) as tab:
        yield tab


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where screenshots go: the folder that SCREENSHOTS names, else one that is thrown away."""
    return Path(os.environ.get("SCREENSHOTS", tmp_path))
