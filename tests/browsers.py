"""A real Chromium on a real Jupyter: open notebooks, run cells, look at what stands below them."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from jupyter_servers import TOKEN, Jupyter
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
# Running a cell before that would drop it without a word.
_READY = """() => {
  const panel = window.jupyterapp?.shell.currentWidget;
  const kernel = panel?.sessionContext?.session?.kernel;
  return kernel?.connectionStatus === 'connected' && kernel.status === 'idle';
}"""
_RUN = """async index => {
  const { content } = window.jupyterapp.shell.currentWidget;
  content.activeCellIndex = index;
  content.deselectAll();
  await window.jupyterapp.commands.execute('notebook:run-cell');
}"""
_RESTART = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"
# Of Notebook 7 itself, of kernels that restart, and Chromium's own word on answers that are no 200
# or break off: what a page makes of those is asserted where it is looked at.
_KNOWN = re.compile(
    r"reading 'schema'|Connection lost|_request message before replies|WebSocket connection to"
    r"|Failed to load resource"
)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run one browser."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no Chromium; on Debian, `make test` installs it for root")
    with sync_playwright() as playwright:
        expect.set_options(timeout=30_000)
        browser = playwright.chromium.launch(executable_path=found, args=_ARGUMENTS)
        yield browser
        browser.close()


class Lab:
    """One page of JupyterLab or Notebook 7; errors and requests to outside are `problems`."""

    def __init__(self, page: Page, server: Jupyter, app: str) -> None:
        self.page = page
        self.server = server
        self.problems: list[str] = []
        self._app = app
        page.set_default_timeout(30_000)
        page.on("console", lambda m: self._problem(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self._problem(str(error)))
        page.on("request", lambda request: self._check(request.url))

    def open(self, path: str, kernel: bool = True) -> None:
        """Open a notebook, by default until its kernel is ready."""
        # A workspace of its own: what another test left open stays closed.
        own = f"lab/workspaces/{secrets.token_hex(4)}/tree"
        folder = own if self._app == "lab" else "notebooks"
        self.page.goto(f"{self.server.url}/{folder}/{path}?token={TOKEN}")
        self.page.locator(".jp-Notebook").wait_for()
        if kernel:
            self.ready()

    def ready(self) -> None:
        """Wait until the kernel is there and idle."""
        self.page.wait_for_function(_READY)

    def run(self, index: int) -> None:
        """Run a cell and wait for its end."""
        self.page.evaluate(_RUN, index)

    def start(self, index: int) -> None:
        """Run a cell and do not wait."""
        self.page.evaluate(f"index => void ({_RUN})(index)", index)

    def save(self) -> None:
        """Save the notebook."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")

    def restart(self) -> None:
        """Restart the kernel."""
        self.page.evaluate(_RESTART)

    def card(self, index: int = 0) -> Locator:
        """Return the card below a cell."""
        return self.page.locator(".jp-CodeCell").nth(index).locator(".fal-Card")

    def shot(self, path: Path) -> None:
        """Keep a picture, for a person to look at."""
        self.page.screenshot(path=str(path))

    def _check(self, url: str) -> None:
        parts = urlsplit(url)
        own = parts.netloc == urlsplit(self.server.url).netloc
        if not own and parts.scheme not in ("data", "blob"):
            self.problems.append(f"a request to outside: {url}")

    def _problem(self, text: str) -> None:
        if not _KNOWN.search(text):
            self.problems.append(text)


@contextlib.contextmanager
def lab(browser: Browser, server: Jupyter, app: str = "lab", **context: Any) -> Iterator[Lab]:
    """Open a page of its own; what went wrong in it fails the test."""
    own = browser.new_context(viewport={"width": 1200, "height": 900}, **context)
    found = Lab(own.new_page(), server, app)
    try:
        yield found
    except BaseException:
        print(*found.problems, sep="\n")
        raise
    finally:
        with contextlib.suppress(Exception):
            found.shot(server.root / "last.png")
        own.close()
    assert found.problems == [], "\n".join(found.problems)
