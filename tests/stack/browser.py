"""A real browser for the acceptance tests: the Chromium of this host, driven by Playwright."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

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


@dataclass(frozen=True)
class Place:
    """Where the browser runs: in the network namespace of a container that serves the page.

    A browser aborts its requests with ERR_NETWORK_CHANGED when a network interface comes or goes, as on this host with
    every container that another test starts. Without root, which entering a namespace requires, it runs on this host.
    """

    namespace: str
    """The `SandboxKey` of the container."""
    port: int
    """The port on which the container listens."""

    @property
    def address(self) -> str:
        """The address of the page, without a port where that of the URL is the right one."""
        return f"127.0.0.1:{self.port}" if os.geteuid() == 0 else "127.0.0.1"

    @contextmanager
    def browser(self) -> Iterator[str]:
        """Yield the path of an executable that starts Chromium in this place."""
        enter = f"nsenter --net={self.namespace} " if os.geteuid() == 0 else ""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "chromium"
            path.write_text(f'#!/bin/sh\nexec {enter}{CHROMIUM} "$@"\n')
            path.chmod(0o700)
            yield str(path)


@contextmanager
def tab(place: Place, hostname: str, user: str, password: str) -> Iterator[Tab]:
    """Open a tab that finds `hostname` in `place`, and answers a login with `user` and `password`."""
    with place.browser() as path, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            # The sandbox of Chromium does not work for root, as which CI runs.
            args=["--no-sandbox", f"--host-resolver-rules=MAP {hostname} {place.address}"],
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
