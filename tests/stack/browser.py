"""A real browser for the acceptance tests: the Chromium of this host, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

from playwright.sync_api import ConsoleMessage, Page, Response, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The browser on this host, or None."""
TIMEOUT_MS = 30_000


@dataclass
class Tab:
    """A tab of the browser, with everything that went wrong in it."""

    page: Page
    answers: list[str] = field(default_factory=list)
    """Answers with an error: the HTTP status and the URL."""
    errors: list[str] = field(default_factory=list)
    """Errors in the console and exceptions of scripts, without what the console says about each of `answers`."""

    def __post_init__(self) -> None:
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))
        self.page.on("response", self._see)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith("Failed to load resource: the server responded"):
            self.errors.append(message.text)

    def _see(self, answer: Response) -> None:
        if answer.status >= HTTPStatus.BAD_REQUEST:
            self.answers.append(f"{answer.status} {answer.url}")


@contextmanager
def tab(hostname: str, user: str, password: str) -> Iterator[Tab]:
    """Open a tab whose `hostname` is this host, and which answers a login with `user` and `password`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            # The sandbox of Chromium does not work for root, as which CI runs.
            args=["--no-sandbox", f"--host-resolver-rules=MAP {hostname} 127.0.0.1"],
        )
        context = browser.new_context(
            ignore_https_errors=True,
            accept_downloads=True,
            http_credentials={"username": user, "password": password},
            viewport={"width": 1400, "height": 1000},
        )
        context.set_default_timeout(TIMEOUT_MS)
        opened = Tab(context.new_page())
        try:
            yield opened
        finally:
            browser.close()
