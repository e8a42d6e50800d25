"""A real Chromium without a screen, and what a page says in its console."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def opened(file: Path) -> Iterator[Page]:
    """The page of a file, in a window as wide as a laptop's; fails where the page has complained of anything."""
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("needs chromium")
    said: list[str] = []
    asked: list[str] = []
    with sync_api.sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, whose tests these may be.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(file.as_uri())
            yield page
        finally:
            browser.close()
    assert said == [], said
    assert asked == [file.as_uri()], asked
