"""Rollouts: no request is lost, whoever takes whose place; what a rollback brings back."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import inside
import pytest
from inside import close_gateway, open_gateway
from load import Load
from serving import ACT, control, deployed, events, eventually, steps
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from fal_notebook import cli
from fal_notebook.discovery import GatewayInfo
from fal_notebook.display import status_table
from fal_notebook.exceptions import (
    DeployError,
    NotFoundError,
    OptionError,
    PayloadMissingError,
    RegistryError,
)
from fal_notebook.gateway.operations import revisions
from fal_notebook.gateway.store import Revision
from fal_notebook.handle import Handle

SOCKETS = f"{sys.executable} {Path(__file__).with_name('socket_server.py')}"
ONE = "def one(x: int = 0) -> int:\n    return x + 1\n"
TWO = "def one(x: int = 0, y: int = 0) -> int:\n    return x + y + 2\n"


def changed(number: int) -> str:
    return ACT.rstrip().removesuffix("return n") + f"return n + {number}\n"


def defined(source: str) -> Any:
    """Return the function `load` of a source as a notebook would have it."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    return space["load"]


@pytest.fixture
def apps() -> Iterator[ExitStack]:
    """What is deployed in it is deleted at the end of the test."""
    with ExitStack() as stack:
        yield stack


def shown(*words: str) -> str:
    return "\n".join(cli.as_lines(cli.run(list(words), "fal-notebook")))


# --- under load ----------------------------------------------------------------------------------
@pytest.mark.parametrize("strategy", ["rolling", "recreate"])
def test_every_request_is_answered_through_deploys_and_rollbacks(
    gateway: GatewayInfo, apps: ExitStack, strategy: str
) -> None:
    options: dict[str, Any] = {"max_concurrency": 2, "max_multiplexing": 2, "keep_alive": 60}
    options["deployment_strategy"] = strategy
    act = apps.enter_context(deployed(ACT, **options))
    broken = defined("def load():\n    raise ValueError('no model')\n")
    with Load(gateway, act) as load:
        for number in range(1, 4):
            apps.enter_context(deployed(changed(number), **options))
            load.go_on()
        with pytest.raises(DeployError, match="no model"):
            apps.enter_context(deployed(ACT, setup_function=broken, **options))
        load.go_on()
        act.rollback(2)
        load.go_on()
        act.rollback()
    assert set(load.answers) == {200}, load.answers
    assert act.revisions()[0]["number"] == 7
    assert act() == 3


@pytest.mark.parametrize("strategy", ["rolling", "recreate"])
def test_a_request_may_outlast_the_grace_of_the_runner_that_gives_way(
    apps: ExitStack, private_state: Path, strategy: str
) -> None:
    options: dict[str, Any] = {"deployment_strategy": strategy, "name": f"patient-{strategy}"}
    options["termination_grace_period_seconds"] = 0
    act = apps.enter_context(deployed(ACT, **options))
    apps.enter_context(deployed(changed(1), **options))
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(act, do="sleep", n=2)
        eventually(lambda: any(runner["in_flight"] for runner in act.runners()))
        act.rollback()
        assert answer.result() == 3
    eventually(lambda: len(act.runners()) == 1)
    told = [data.get("step") for data in events(private_state, act.name, "deploy")]
    assert ("waiting" in told) == (strategy == "recreate")


def test_a_websocket_of_a_server_holds_up_no_rollout_beyond_the_grace(
    gateway: GatewayInfo, shell: Any
) -> None:
    line = "%%fal_server held wait=true exposed_port=8000 deployment_strategy=recreate "
    line += "termination_grace_period_seconds=1"
    shell.run(f"{line}\n{SOCKETS} {{port}}")
    url = gateway.url.replace("http", "ws") + "/run/tester/held/"
    headers = {"authorization": f"Bearer {gateway.token}"}
    with connect(url, additional_headers=headers, proxy=None) as socket:
        assert socket.recv() == "/"
        shell.run(f"{line}\n{SOCKETS} {{port}}  # once more")
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=5)


# --- what comes back -----------------------------------------------------------------------------
def test_a_rollback_has_the_code_of_then_and_the_scaling_of_now(apps: ExitStack) -> None:
    one = apps.enter_context(deployed(ONE, keep_alive=20, max_multiplexing=3, message="first"))
    apps.enter_context(deployed(TWO, keep_alive=30, min_concurrency=1))
    one.scale(scaling_delay=4)
    assert one.rollback() is one
    assert one(1) == 2
    now = one.status()
    options = {"keep_alive": 30, "min_concurrency": 1, "scaling_delay": 4}
    assert options.items() <= now["options"].items()
    assert {"max_multiplexing": 3, "message": "first"}.items() <= now["options"].items()
    assert now["number"] == 3
    assert origins(now, "scaling_delay", "startup_timeout") == ["inherited", ""]
    assert [(r["number"], r["state"], r["origin"]) for r in one.revisions()] == [
        (3, "ACTIVE", "revision 1"),
        (2, "SUPERSEDED", ""),
        (1, "SUPERSEDED", ""),
    ]
    one.rollback()
    assert one(1, 1) == 4


def origins(status: dict[str, Any], *names: str) -> list[str]:
    """Return where a status says that these options are from."""
    found = {name: origin for name, _, origin in status_table(status)._rows}
    return [found[name] for name in names]


def test_a_rollback_that_does_not_come_up_changes_nothing(
    apps: ExitStack, private_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMES_UP", "certainly")
    shown("secrets", "set", "COMES_UP", "--from-env")
    monkeypatch.delenv("COMES_UP")
    load = defined("import os\ndef load():\n    assert os.environ['COMES_UP'][0] == 'c'\n")
    options: dict[str, Any] = {"setup_function": load, "secrets": ["COMES_UP"]}
    one = apps.enter_context(deployed(ONE, **options))
    apps.enter_context(deployed(TWO, min_concurrency=1))
    before = [runner["id"] for runner in one.runners()]
    monkeypatch.setenv("COMES_UP", "never")
    shown("secrets", "set", "COMES_UP", "--from-env")
    with pytest.raises(DeployError, match="AssertionError"):
        one.rollback()
    assert one(1, 1) == 4
    assert before[-1] in [runner["id"] for runner in one.runners()]
    assert [r["state"] for r in one.revisions()] == ["FAILED", "ACTIVE", "SUPERSEDED"]
    with pytest.raises(OptionError, match="revision 3 of one never came up"):
        one.rollback(3)
    shown("secrets", "delete", "COMES_UP")
    with pytest.raises(NotFoundError, match="there is no secret COMES_UP"):
        one.rollback(1)


def test_what_never_came_up_has_revisions_and_logs_and_can_be_deleted(
    gateway: GatewayInfo,
) -> None:
    broken = defined("def load():\n    raise ValueError('no model')\n")
    with pytest.raises(DeployError, match="no model"), deployed(ONE, setup_function=broken):
        pass
    assert "no model" in shown("logs", "one")
    assert "FAILED" in shown("revisions", "one")
    told = "no revision of tester/one came up yet; '%fal revisions one' and '%fal logs one'"
    with pytest.raises(NotFoundError, match=told):
        shown("status", "one")
    shown("delete", "one")
    with pytest.raises(NotFoundError, match="there is no app tester/one"):
        shown("revisions", "one")


def test_a_rollback_that_is_cancelled_changes_nothing(
    gateway: GatewayInfo, apps: ExitStack
) -> None:
    slow = defined("import time\ndef load():\n    time.sleep(2)\n")
    one = apps.enter_context(deployed(ONE, setup_function=slow))
    apps.enter_context(deployed(TWO))
    with control(gateway) as client:
        assert client.post("/api/apps/tester/one/rollback").json()["number"] == 3
        eventually(lambda: one.status()["step"].startswith("starting"))
        with pytest.raises(OptionError, match="revision 3 of one is being deployed"):
            one.rollback(3)
        one.cancel_deploy()
        eventually(lambda: one.revisions()[0]["state"] == "FAILED")
    assert one(1, 1) == 4


def test_what_cannot_be_brought_back_is_said_in_one_sentence(
    apps: ExitStack, private_state: Path
) -> None:
    one = apps.enter_context(deployed(ONE))
    with pytest.raises(NotFoundError, match="no revision of one came up before 1"):
        one.rollback()
    with pytest.raises(OptionError, match="revision 1 of one serves already"):
        one.rollback(1)
    with pytest.raises(NotFoundError, match="one has no revision 7; the last are 1"):
        one.rollback(7)
    with pytest.raises(NotFoundError, match="there is no app tester/nobody"):
        Handle("tester", "nobody").rollback()
    before = set((private_state / "blobs").iterdir())
    apps.enter_context(deployed(TWO))
    (new,) = set((private_state / "blobs").iterdir()) - before
    one.rollback()
    new.unlink()
    with pytest.raises(PayloadMissingError, match="revision 2 is gone; run its cell again"):
        one.rollback(2)


def test_an_environment_that_is_there_is_used_and_one_that_is_gone_is_built_again(
    apps: ExitStack, private_state: Path
) -> None:
    uses = "def one() -> str:\n    import six\n    return six.__name__\n"
    one = apps.enter_context(deployed(uses, requirements=["six"], force=True))
    apps.enter_context(deployed(TWO))
    told = steps(private_state, "one").count("environment ready")
    one.rollback()
    assert steps(private_state, "one").count("environment ready") == told
    one.rollback()
    shutil.rmtree(private_state / "envs")
    one.rollback()
    assert "the environment of revision 3 is gone: it is built again" in steps(private_state, "one")
    assert one() == "six"


async def test_without_its_python_a_revision_is_said_to_need_its_cell(tmp_path: Path) -> None:
    gateway = open_gateway(tmp_path)
    await inside.deployed(gateway, ONE)
    (first,) = gateway.store.select(Revision)
    first.manifest["interpreter"] = first.environment["python"] = "/nowhere/python"
    gateway.store.put(first)
    await inside.deployed(gateway, TWO)
    revisions.rollback(gateway, "tester", "app")
    await asyncio.wait([gateway.deployments["tester", "app"].task])
    failed = gateway.store.select(Revision, "number = 3")[0]
    assert failed.error == "the Python of revision 1 is gone; run its cell again"
    await close_gateway(gateway)


class Gone:
    """A backend whose images are gone, and that of which they were made cannot be pulled."""

    @classmethod
    async def load(cls, *_: object) -> Gone:
        return cls()

    async def restore(self, *_: object) -> bool:
        return False

    async def build(self, *_: object) -> dict[str, str]:
        raise RegistryError("registry:1/base:1 cannot be pulled: connection refused")


@pytest.mark.parametrize(
    ("image", "again"), [("fal-notebook/app:1", "built"), ("registry:1/base@sha256:0", "pulled")]
)
async def test_an_image_that_is_gone_for_good_is_said_to_need_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str, again: str
) -> None:
    gateway = open_gateway(tmp_path)
    await inside.deployed(gateway, ONE)
    (first,) = gateway.store.select(Revision)
    first.environment = {"image": image}
    gateway.store.put(first)
    await inside.deployed(gateway, TWO)
    with monkeypatch.context() as patch:
        patch.setattr(gateway.targets, "load", Gone.load)
        revisions.rollback(gateway, "tester", "app")
        await asyncio.wait([gateway.deployments["tester", "app"].task])
    failed = gateway.store.select(Revision, "number = 3")[0]
    assert failed.error.startswith(
        "the image of revision 1 is gone and registry:1/base:1 cannot be pulled: connection "
        "refused; bring that very image to this machine (docker pull"
    )
    await close_gateway(gateway)
    assert f"the image of revision 1 is gone: it is {again} again" in steps(tmp_path, "app")


# --- what is different ---------------------------------------------------------------------------
def test_a_diff_has_the_source_the_options_and_the_schema(apps: ExitStack) -> None:
    one = apps.enter_context(deployed(ONE, keep_alive=20))
    apps.enter_context(deployed(TWO, keep_alive=30, requirements=["six"]))
    found = one.diff()
    assert (found["from"], found["to"]) == (1, 2)
    assert "-    return x + 1\n+def one" in found["source"]
    assert found["options"] == "-keep_alive=20\n+keep_alive=30"
    assert "+six" in found["requirements"].splitlines()
    assert '+          "y": {' in found["schema"]
    told = shown("diff", "one", "1")
    assert told.startswith("one: from revision 1 to 2, which serves\n\nsource\n@@")
    assert "options\n-keep_alive=20\n+keep_alive=30" in told
    one.rollback(1)
    assert one.diff(1)["source"] == one.diff(1)["schema"] == ""
    assert (found["identical"], one.diff(1)["identical"]) == (False, True)
    assert "first" not in shown("revisions", "one")


@pytest.mark.parametrize(("before", "after"), [("0.5", "0.7"), ("{'a': [1]}", "{'a': [2]}")])
def test_a_diff_has_a_value_that_is_another_of_the_same_size(
    apps: ExitStack, before: str, after: str
) -> None:
    source = "LIMIT = {}\ndef one(): return LIMIT\n"
    apps.enter_context(deployed(source.format(before)))
    one = apps.enter_context(deployed(source.format(after)))
    removed, added = one.diff()["captured"].splitlines()
    assert (removed[:8], added[:8]) == ("-LIMIT: ", "+LIMIT: ")
    apps.enter_context(deployed(source.format(after), keep_alive=33))
    assert one.diff()["captured"] == ""


def test_the_commands_show_what_came_of_them(apps: ExitStack) -> None:
    apps.enter_context(deployed(ONE, message="the first"))
    apps.enter_context(deployed(TWO))
    assert "one: active (revision 3)" in shown("rollback", "one", "1")
    first, *rows = shown("revisions", "one").splitlines()
    assert first.split() == ["revision", "state", "deployed", "copy", "of", "message"]
    assert [row.split()[0] for row in rows] == ["3", "2", "1"]
    assert "revision 1  the first" in rows[0]
