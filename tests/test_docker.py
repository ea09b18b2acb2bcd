"""Apps in containers, from the cell to the answer, with a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fal_notebook import discovery, sync
from fal_notebook.handle import shared_client


@pytest.fixture(scope="module")
def containers(docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state folder whose gateway deploys to containers."""
    state = tmp_path_factory.mktemp("docker-state")
    sync.wait(shared_client().close())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAL_NOTEBOOK_STATE", str(state))
        patch.setenv("DOCKER_HOST", docker_host)
        patch.setenv("FAL_NOTEBOOK_TARGET", "docker")
        yield state
        sync.wait(shared_client().stop_gateway())
        discovery.wait_until_gone(state)
    sync.wait(shared_client().close())


@pytest.fixture
def cells(containers: Path, shell: Any) -> Any:
    """A notebook whose apps are containers."""
    return shell


def test_a_cell_becomes_a_container_that_answers_over_http(cells: Any) -> None:
    cells.run("factor = 3")
    cells.run(
        "%%fal_function target=docker serve=true auth=public wait=true\n"
        "def triple(x: int) -> int:\n    return x * factor\n"
    )
    assert cells["triple"](5) == 15
    reply = httpx.post(cells["triple"].url, json={"x": 4})
    assert (reply.status_code, reply.json()) == (200, 12)
