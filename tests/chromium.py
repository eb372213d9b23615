"""A headless Chromium for the tests of pages: every request, console message and error is kept.

Debian's `chromium` package (or any installed Chrome) is driven by the Python package `playwright`;
its own browser download is not needed. Tests are skipped, with the missing part named, where one
of the two is absent.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mi_massive.viz import find_browser

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


@dataclass
class Visit:
    """One opened page."""

    page: Any
    """Playwright's page."""
    requests: list[str] = field(default_factory=list)
    """Every address that the page asked for, the page itself left out."""
    messages: list[str] = field(default_factory=list)
    """Console messages of every level, and uncaught errors."""

    def draw_everything(self) -> None:
        """Bring each lazy part into view and wait until it is drawn."""
        for part in self.page.query_selector_all(".plot, .mi-patterns"):
            part.scroll_into_view_if_needed()
            self.page.wait_for_function(
                "node => node.dataset.drawn || node.dataset.rendered", arg=part, timeout=30_000
            )
        self.page.wait_for_timeout(300)

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's browser; skips the test where there is none."""
    driver = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'"
    )
    executable = find_browser()
    if executable is None or shutil.which(executable) is None:
        pytest.skip("no Chromium or Chrome found: apt-get install chromium")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def visit(
    browser: Any,
    path: Path,
    *,
    size: dict[str, int] = DESKTOP,
    scheme: str = "light",
    **options: Any,
) -> Iterator[Visit]:
    """Open a local page; `scheme` is what the reader prefers, options go to the browser context."""
    context = browser.new_context(viewport=size, color_scheme=scheme, **options)
    page = context.new_page()
    seen = Visit(page=page)
    address = path.resolve().as_uri()

    def note_request(request: Any) -> None:
        inert = request.url.startswith(("data:", "blob:")) or request.url.split("#")[0] == address
        if not inert:
            seen.requests.append(request.url)

    page.on("request", note_request)
    page.on("console", lambda message: seen.messages.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.messages.append(f"error: {error}"))
    page.goto(address)
    yield seen
    context.close()
