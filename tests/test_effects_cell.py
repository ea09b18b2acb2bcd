"""What each option of a cell does to its deploy: what is deployed, as whose, where, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from cells import cell
from effects import effect_of, given
from serving import ACT, control, defined, deleted_after, deployed, eventually

from fal_notebook import deploying
from fal_notebook.discovery import GatewayInfo

ECHO = {"do": "echo", "n": 7}


def line(**options: str) -> str:
    """Return the line of a cell whose deploy is waited for, with options unless one is left out."""
    return " ".join(f"{name}={value}" for name, value in {"wait": "true", **options}.items())


def called(gateway: GatewayInfo, path: str, body: Any = None) -> httpx.Response:
    """POST to an app over HTTP, as its owner."""
    with control(gateway) as client:
        return client.post(f"/run/{path}", json=body or {})


@effect_of("wait")
def test_an_app_answers_when_a_deploy_that_was_waited_for_returns(gateway: GatewayInfo) -> None:
    slow = defined("import time\ndef made(): time.sleep(2)")
    with deleted_after("act"):
        deploying.deploy(defined(ACT), setup_function=slow, **given(wait=True))
        reply = called(gateway, "tester/act", {"do": "echo", "n": 7})
        assert (reply.status_code, reply.text) == (200, "7.0")


@effect_of("entry")
def test_the_function_that_is_named_is_the_app(shell: Any, gateway: GatewayInfo) -> None:
    body = "def first() -> str: return 'first'\ndef last() -> str: return 'last'"
    shell.run(cell(line(name="named", **given(entry="first")), body))
    assert called(gateway, "tester/named").json() == "first"


@effect_of("dry_run")
def test_a_dry_run_leaves_no_app(shell: Any, gateway: GatewayInfo) -> None:
    shell.run(cell(line(**given(dry_run="true")), "def tried() -> int: return 1"))
    assert called(gateway, "tester/tried").status_code == 404


@effect_of("owner")
def test_an_app_has_the_url_of_its_owner(gateway: GatewayInfo) -> None:
    with deployed(ACT, **given(owner="ada")):
        assert called(gateway, "ada/act", ECHO).status_code == 200
        assert called(gateway, "tester/act", ECHO).status_code == 404


@effect_of("allow_secret")
def test_a_variable_that_looks_like_a_key_is_taken_when_it_is_allowed() -> None:
    source = "API_KEY = 'sk-proj-' + 'aB3dE5fG7hJ9kL1m' * 3\ndef uses() -> int: return len(API_KEY)"
    with deployed(source, **given(allow_secret=["API_KEY"])) as uses:
        assert uses() == 56


@effect_of("takeover")
@pytest.mark.filterwarnings("ignore:taken over from")
def test_an_app_is_taken_over_from_another_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    with deployed(ACT) as act:
        monkeypatch.setattr(deploying, "identity", lambda: "another notebook")
        with deployed(ACT + "\n# changed", **given(takeover=True)):
            assert act.status()["notebook"] == "another notebook"
            assert act(**ECHO) == 7


@effect_of("reset_scale")
def test_what_the_cell_does_not_say_is_not_inherited() -> None:
    changed = {"keep_alive": 0, **given(reset_scale=True)}
    with deployed(ACT, min_concurrency=1) as act, deployed(ACT + "\n# changed", **changed):
        eventually(lambda: act.runners() == [])


@effect_of("target")
def test_an_app_runs_where_the_cell_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_TARGET", "docker")
    source = f"import os\ndef here() -> bool: return os.path.isdir({str(tmp_path)!r})"
    with deployed(source, **given(target="local")) as here:
        assert here()
