"""The widget on a page that is not Jupyter's, as VS Code and Colab host it: the comm is its way."""

from __future__ import annotations

import base64
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from serving import deployed, eventually

from fal_notebook.discovery import GatewayInfo
from fal_notebook.widgets import STATIC
from fal_notebook.widgets.comm_relay import CommRelay

# A host as small as it can be: the model of anywidget, whose other end a test plays.
HOST = """
<!doctype html><meta charset="utf-8"><title>host</title><div id="here"></div>
<script type="module">
import widget from './widget.js';
const listeners = new Map();
const on = (name, f) => listeners.set(name, [...(listeners.get(name) ?? []), f]);
const off = (name, f) => listeners.set(name, (listeners.get(name) ?? []).filter(g => g !== f));
const tell = (name, ...args) => (listeners.get(name) ?? []).forEach(f => f(...args));
const letters = buffer => Array.from(new Uint8Array(buffer), b => String.fromCharCode(b)).join('');
const text = buffer => btoa(letters(buffer));
const bytes = text => new DataView(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
const state = {};
const model = { get: name => state[name], on, off,
  send: (content, _, buffers = []) => window.toKernel(content, buffers.map(text)) };
window.fromKernel = (content, buffers) => tell('msg:custom', content, buffers.map(bytes));
window.setCard = card => { state.card = card; tell('change:card'); };
window.show = card => {
  state.card = card;
  widget.render({ model, el: document.getElementById('here') });
};
</script>
"""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Host:
    """The page, and a kernel's end of its comm."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.messages: list[tuple[str, int]] = []
        self._out: queue.Queue[tuple[Any, list[bytes]]] = queue.Queue()
        self._relay = CommRelay(lambda content, buffers: self._out.put((content, buffers)))
        page.expose_function("toKernel", self._received)

    def _received(self, content: Any, buffers: list[str]) -> None:
        pieces = [base64.b64decode(text) for text in buffers]
        self.messages.append((content["op"], max(map(len, pieces), default=0)))
        self._relay.receive(content, pieces)

    def close(self) -> None:
        self._relay.close()
        eventually(lambda: not self._relay._requests)

    def until(self, condition: Callable[[], bool]) -> None:
        """Carry messages to the page until something is true."""
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, self.page.content()
            self.page.wait_for_timeout(20)
            while not self._out.empty():
                content, pieces = self._out.get()
                texts = [base64.b64encode(piece).decode() for piece in pieces]
                self.page.evaluate("([c, b]) => window.fromKernel(c, b)", [content, texts])

    @property
    def text(self) -> str:
        return self.page.inner_text("#here")


@pytest.fixture
def host(tmp_path: Path, browser: Browser) -> Iterator[Host]:
    (tmp_path / "widget.js").write_bytes((STATIC / "widget.js").read_bytes())
    (tmp_path / "index.html").write_text(HOST)
    with served(tmp_path) as url, closing(browser.new_page()) as page:
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        found = Host(page)
        page.goto(url)
        page.wait_for_function("() => window.show")
        yield found
        found.close()
        assert problems == []


def test_a_card_follows_its_app_over_the_comm(host: Host, gateway: GatewayInfo) -> None:
    with deployed("def bare(): return 1", keep_alive=1) as handle:
        card = {"owner": "tester", "name": "bare", "state": "deploying", "steps": []}
        host.page.evaluate("card => window.show(card)", card)
        assert "deploying" in host.text
        host.page.evaluate("card => window.setCard(card)", {**card, "state": "active"})
        host.until(lambda: "/run/tester/bare" in host.text)
        handle()
        host.until(lambda: "1 runner" in host.text)
        host.until(lambda: "scaled to zero" in host.text)
        handle.delete()
        host.until(lambda: "not deployed here any more" in host.text)
        host.until(lambda: ("cancel", 0) in host.messages)
    assert {op for op, _ in host.messages} == {"request", "more", "cancel"}
