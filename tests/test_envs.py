"""Environments: apps with secrets of their own beside those of main; copied from one to another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from effects import effect_of, given
from serving import control, deployed, steps

from fal_notebook import cli, sync
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import ConflictError, FalNotebookError, NotFoundError, OptionError
from fal_notebook.handle import Handle, shared_client

SEEN = "import os\ndef seen(x: int = 0) -> str:\n    return os.environ.get('ENV_WORD', 'nothing')\n"
LATER = SEEN.replace("'nothing'", "'nothing later'")


def command(*words: str) -> str:
    return "\n".join(cli.as_lines(cli.run(list(words), "fal-notebook")))


def store(value: str, env: str = "main") -> None:
    sync.wait(shared_client().set_secret("ENV_WORD", value, env))


@pytest.fixture
def apps(gateway: GatewayInfo) -> Iterator[ExitStack]:
    """What is deployed in it is deleted at the end, and so is the environment staging."""
    command("env", "create", "staging")
    with ExitStack() as stack:
        yield stack
    command("env", "delete", "staging")
    with contextlib.suppress(NotFoundError):
        command("secrets", "delete", "ENV_WORD")


# --- apps and secrets ----------------------------------------------------------------------------
@effect_of("env")
def test_an_app_of_an_environment_has_a_name_and_secrets_of_its_own(apps: ExitStack) -> None:
    store("that of main")
    store("that of staging", "staging")
    secret: dict[str, Any] = {"secrets": ["ENV_WORD"]}
    main = apps.enter_context(deployed(SEEN, **secret))
    staging = apps.enter_context(deployed(SEEN, **given(env="staging"), **secret))
    assert (main.name, staging.name) == ("seen", "seen--staging")
    assert staging.url.endswith("/run/tester/seen--staging")
    assert (main(), staging()) == ("that of main", "that of staging")
    found = [(each["name"], each["env"]) for each in sync.wait(shared_client().secrets())]
    assert found == [("ENV_WORD", "main"), ("ENV_WORD", "staging")]


def test_a_secret_of_main_is_none_of_another_environment(apps: ExitStack) -> None:
    store("that of main")
    told = "no secret ENV_WORD in staging; store it with '%fal secrets set ENV_WORD --env staging'"
    with (
        pytest.raises(NotFoundError, match=told),
        deployed(SEEN, env="staging", secrets=["ENV_WORD"]),
    ):
        pass
    command("secrets", "delete", "ENV_WORD")
    store("that of staging", "staging")
    with pytest.raises(NotFoundError, match="no secret ENV_WORD; '%fal secrets list' shows all"):
        command("secrets", "delete", "ENV_WORD")
    assert command("secrets", "delete", "ENV_WORD", "--env", "staging") == (
        "ENV_WORD is deleted in staging"
    )


def test_an_environment_that_is_not_there_is_refused_by_cells_and_secrets(shell: Any) -> None:
    cell = "%%fal_function env=nowhere {}\ndef f() -> int:\n    return 1\n"
    sentence = "there is no environment nowhere; make it with '%fal env create nowhere'"
    shell.run("%fal secrets list")
    for options in ("", "secrets=ENV_WORD dry_run=true"):
        with pytest.raises(Exception, match=sentence):
            shell.run(cell.format(options))
    with pytest.raises(NotFoundError, match=sentence):
        store("a word", "nowhere")


def test_one_name_is_that_of_one_app(apps: ExitStack) -> None:
    apps.enter_context(deployed(SEEN, name="seen--staging"))
    with pytest.raises(
        ConflictError, match="seen--staging of the environment main; choose another"
    ):
        apps.enter_context(deployed(SEEN, env="staging"))


@pytest.mark.parametrize("name", ["Staging", "a--b", "-a", "a_b", "a" * 31, ""])
def test_a_wrong_name_is_refused(gateway: GatewayInfo, name: str) -> None:
    with pytest.raises(OptionError, match="cannot be the name of an environment: lower-case"):
        command("env", "create", "--", name)


def test_a_name_that_gets_too_long_is_refused(apps: ExitStack) -> None:
    with pytest.raises(OptionError, match=r"--staging has more than 63 characters; shorten"):
        apps.enter_context(deployed(SEEN, env="staging", name="a" * 60))


def test_environments_are_listed_and_deleted_when_they_are_empty(apps: ExitStack) -> None:
    store("that of staging", "staging")
    with pytest.raises(ConflictError, match="there is an environment staging already"):
        command("env", "create", "staging")
    with pytest.raises(ConflictError, match="main cannot be deleted"):
        command("env", "delete", "main")
    with pytest.raises(NotFoundError, match="there is no environment nowhere"):
        command("env", "delete", "nowhere")
    with deployed(SEEN, env="staging", owner="ada"), deployed(SEEN, env="staging"):
        assert "staging      ada/seen--staging, seen--staging  1" in command("env", "list")
        with pytest.raises(
            ConflictError, match="has apps: ada/seen--staging, seen--staging; delete"
        ):
            command("env", "delete", "staging")
    assert command("env", "delete", "staging") == "staging is deleted, with its secrets"
    assert sync.wait(shared_client().secrets()) == []
    command("env", "create", "staging")


# --- promotion -----------------------------------------------------------------------------------
def test_a_promotion_copies_what_serves_without_a_build(
    apps: ExitStack, private_state: Path
) -> None:
    store("that of main")
    store("that of staging", "staging")
    main = apps.enter_context(deployed(LATER, keep_alive=33))
    main.scale(min_concurrency=1)
    options: dict[str, Any] = {"secrets": ["ENV_WORD"], "requirements": ["six"], "force": True}
    staging = apps.enter_context(deployed(SEEN, env="staging", max_multiplexing=2, **options))
    told = command("promote", "seen", "--from", "staging")
    assert "seen: active (revision 2)" in told
    assert "environment ready" not in steps(private_state, "seen")
    assert (main(), staging()) == ("that of main", "that of staging")
    now = main.status()
    wanted = {"max_multiplexing": 2, "keep_alive": 33, "min_concurrency": 1}
    assert wanted.items() <= now["options"].items()
    assert now["digest"] == staging.status()["digest"]
    assert main.revisions()[0]["origin"] == "revision 1 of seen--staging"
    assert staging.promote("staging").name == "seen"
    assert main.status()["number"] == 2
    main.rollback()
    assert main() == "nothing later"


def test_a_promotion_may_be_the_first_of_its_environment(apps: ExitStack) -> None:
    main = apps.enter_context(deployed(SEEN))
    staging = main.promote("main", to="staging")
    apps.callback(staging.delete)
    assert (staging.name, staging()) == ("seen--staging", "nothing")


def test_what_cannot_be_promoted_is_said_in_one_sentence(
    apps: ExitStack, gateway: GatewayInfo
) -> None:
    store("that of staging", "staging")
    staging = apps.enter_context(deployed(SEEN, env="staging", secrets=["ENV_WORD"]))
    with pytest.raises(NotFoundError, match="no secret ENV_WORD; store it with"):
        staging.promote("staging")
    refused: list[tuple[list[str], str]] = [
        (["nobody", "--from", "staging"], "there is no app tester/nobody--staging"),
        (["seen", "--from", "nowhere"], "there is no environment nowhere"),
        (["seen", "--from", "staging", "--to", "nowhere"], "there is no environment nowhere"),
        (["seen", "--from", "main"], "from one environment to another: give two"),
    ]
    for words, sentence in refused:
        with pytest.raises(FalNotebookError, match=sentence):
            command("promote", *words)
    with control(gateway) as client:
        wrong = client.post("/api/apps/tester/seen/promote", json={"source": "A"})
        assert wrong.status_code == 422
    assert Handle("tester", "seen--staging")() == "that of staging"
