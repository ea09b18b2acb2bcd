"""What stands below a deploying cell in JupyterLab and Notebook 7, and that it survives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import Lab, lab
from jupyter_servers import Jupyter, jupyter, notebook
from playwright.sync_api import Browser, expect
from serving import kill_gateway

from fal_notebook import discovery
from fal_notebook.handle import Handle

MIME = "application/vnd.fal-notebook.app+json"
LOAD = "%load_ext fal_notebook"
TWICE = "%%fal_function twice keep_alive=2\ndef twice(x: int) -> int:\n    return 2 * x"

LOADS = """%%fal_function loads setup_function=load
import time
def load():
    for number in range(8):
        print("weights", number)
        time.sleep(0.7)
def loads(): return 1
"""
FAILS = """%%fal_function fails setup_function=load
def load():
    print("on its way")
    raise RuntimeError("broken in setup")
def fails(): return 1
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, lab_state: Path) -> Iterator[Jupyter]:
    with jupyter(tmp_path_factory.mktemp("lab"), "lab", "/user/ann/") as found:
        yield found


@pytest.fixture
def page(browser: Browser, server: Jupyter) -> Iterator[Lab]:
    with lab(browser, server) as found:
        yield found


def deployed(page: Lab, *cells: str) -> None:
    """Open a new notebook and run a cell that deploys."""
    notebook(page.server.root / "a.ipynb", f"{LOAD}\n", *(cells or [TWICE]))
    page.open("a.ipynb")
    page.run(0)
    page.run(1)


def test_the_card_follows_deploy_and_app(page: Lab) -> None:
    deployed(page, TWICE, "twice(21)")
    card = page.card(1)
    expect(card).to_contain_text("revision")
    expect(card).to_contain_text("/run/tester/twice")
    page.run(2)
    expect(card).to_contain_text("1 runner")
    expect(card).to_contain_text("scaled to zero")


def test_it_survives_a_reload_and_a_restart_of_the_kernel(page: Lab) -> None:
    deployed(page)
    expect(page.card(1)).to_contain_text("twice")
    page.save()
    page.page.reload()
    expect(page.card(1)).to_contain_text("/run/tester/twice")
    page.ready()
    page.restart()
    Handle("tester", "twice")(1)
    expect(page.card(1)).to_contain_text("1 runner")
    expect(page.card(1)).to_contain_text("scaled to zero")


def test_it_lives_without_a_kernel(page: Lab, browser: Browser, server: Jupyter) -> None:
    deployed(page)
    expect(page.card(1)).to_contain_text("revision")
    page.save()
    saved = json.loads((server.root / "a.ipynb").read_text())
    saved["metadata"].pop("widgets", None)
    saved["metadata"]["kernelspec"] = {"name": "absent", "display_name": "Absent"}
    (server.root / "b.ipynb").write_text(json.dumps(saved))
    with lab(browser, server) as other:
        other.open("b.ipynb", kernel=False)
        Handle("tester", "twice")(1)
        expect(other.card(1)).to_contain_text("1 runner")
        expect(other.card(1)).to_contain_text("scaled to zero")


def test_it_follows_while_the_kernel_is_busy(page: Lab) -> None:
    deployed(page, TWICE, "import time; time.sleep(600)")
    expect(page.card(1)).to_contain_text("revision")
    page.start(2)
    Handle("tester", "twice")(1)
    expect(page.card(1)).to_contain_text("1 runner")
    expect(page.card(1)).to_contain_text("scaled to zero")
    page.restart()


def test_a_deploy_that_fails_says_why(page: Lab) -> None:
    deployed(
        page,
        "%%fal_function fails startup_timeout=5\nimport nowhere_at_all as n\ndef fails(): return n",
    )
    notebook(page.server.root / "c.ipynb", LOAD, FAILS)
    page.open("c.ipynb")
    page.run(0)
    page.run(1)
    expect(page.card(1).get_by_role("alert")).to_contain_text("broken in setup")
    expect(page.card(1).locator("pre")).to_contain_text("on its way")


def test_what_a_runner_prints_while_it_starts_is_shown(page: Lab) -> None:
    deployed(page, LOADS)
    expect(page.card(1).locator("pre")).to_contain_text("weights 1")
    expect(page.card(1)).to_contain_text("1 runner")
    expect(page.card(1).locator("pre")).to_have_count(0)


def test_a_deleted_app_says_so(page: Lab) -> None:
    deployed(page)
    expect(page.card(1)).to_contain_text("revision")
    Handle("tester", "twice").delete()
    expect(page.card(1)).to_contain_text("not deployed here any more")


def test_the_gateway_comes_back(page: Lab, lab_state: Path) -> None:
    deployed(page)
    expect(page.card(1)).to_contain_text("scaled to zero")
    kill_gateway(lab_state)
    discovery.wait_until_gone(lab_state)
    Handle("tester", "twice")(1)
    expect(page.card(1)).to_contain_text("1 runner")


def test_what_was_deployed_elsewhere_is_not_taken_for_ours(page: Lab) -> None:
    deployed(page)
    expect(page.card(1)).to_contain_text("revision")
    page.save()
    saved = json.loads((page.server.root / "a.ipynb").read_text())
    saved["cells"][1]["outputs"][0]["data"][MIME]["gateway"] = "0123456789abcdef"
    (page.server.root / "d.ipynb").write_text(json.dumps(saved))
    page.open("d.ipynb")
    expect(page.card(1)).to_contain_text("saved elsewhere")


def test_what_cannot_be_read_is_a_sentence_and_hostile_text_is_text(page: Lab) -> None:
    evil = "<img src=x onerror=alert(1)>"
    texts = dict.fromkeys(("state", "error", "url"), evil) | {"log": [evil], "notes": [evil]}
    unreadable = [None, 5, [], {"name": 5}, {"owner": "../x", "name": "y"}]
    shown = [{"owner": "tester", "name": "x", **texts}, *unreadable]
    show = "from IPython.display import display\ndisplay({{'{}': {!r}}}, raw=True)"
    notebook(page.server.root / "e.ipynb", *(show.format(MIME, data) for data in shown))
    page.open("e.ipynb")
    for number in range(len(shown)):
        page.run(number)
    expect(page.card(0)).to_contain_text(evil)
    assert page.card(0).locator("img").count() == 0
    sentence = "This output cannot be read. Run the cell again."
    expect(page.page.locator(".fal-Output")).to_have_text(
        [re.compile("x"), *[sentence] * len(unreadable)]
    )


def test_notebook_7_shows_the_same(browser: Browser, tmp_path: Path, lab_state: Path) -> None:
    with (
        jupyter(tmp_path / "notebook", "notebook") as server,
        lab(browser, server, "notebook") as page,
    ):
        deployed(page, TWICE.replace("twice", "seven"))
        expect(page.card(1)).to_contain_text("revision 1")
        page.save()
        page.page.reload()
        page.ready()
        page.restart()
        Handle("tester", "seven")(1)
        expect(page.card(1)).to_contain_text("1 runner")


def test_a_reader_may_want_outputs_as_they_were_saved(page: Lab, browser: Browser) -> None:
    deployed(page)
    expect(page.card(1)).to_contain_text("revision")
    page.save()
    page.restart()
    expect(page.card(1)).to_contain_text("scaled to zero")
    page.page.evaluate(
        "() => window.jupyterapp.serviceManager.settings.save("
        "'fal-notebook:output', '{\"follow\": false}')"
    )
    page.open("a.ipynb")
    page.restart()
    expect(page.card(1)).to_contain_text("This is what was saved.")
    page.page.evaluate(
        "() => window.jupyterapp.serviceManager.settings.save('fal-notebook:output', '{}')"
    )


def test_many_cards_share_one_stream_of_events(page: Lab) -> None:
    streams: list[str] = []
    page.page.on("request", lambda r: streams.append(r.url) if "/api/events" in r.url else None)
    names = [f"many{number}" for number in range(8)]
    cells = [TWICE.replace("twice", name).replace("=2", "=60") for name in names]
    notebook(page.server.root / "g.ipynb", LOAD, *cells)
    page.open("g.ipynb")
    for number in range(len(cells) + 1):
        page.run(number)
    for number in range(len(cells)):
        expect(page.card(number + 1)).to_contain_text("runner")
    assert len(streams) == 1
    for name in names:
        Handle("tester", name).delete()
