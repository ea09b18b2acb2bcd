"""Rollouts under load: no request is lost, whoever takes whose place; and what stays when one fails."""

from __future__ import annotations

from contextlib import ExitStack
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from load import Load
from serving import ACT, deployed, eventually

from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import DeployError, NotFoundError, OptionError
from fal_notebook.handle import Handle

OPTIONS: dict[str, Any] = {"max_concurrency": 2, "max_multiplexing": 2, "keep_alive": 60}


def changed(number: int) -> str:
    return ACT.rstrip().removesuffix("return n") + f"return n + {number}\n"


@pytest.mark.parametrize("strategy", ["rolling", "recreate"])
def test_under_load_every_request_of_deploys_and_rollbacks_is_answered(
    gateway: GatewayInfo, strategy: str
) -> None:
    options = {**OPTIONS, "deployment_strategy": strategy}
    with ExitStack() as apps:
        act = apps.enter_context(deployed(ACT, **options))
        with Load(gateway, act) as load:
            for number in range(1, 4):
                apps.enter_context(deployed(changed(number), **options))
                load.go_on()
            act.rollback(2)
            load.go_on()
            act.rollback()
        assert set(load.answers) == {200}, load.answers
        assert act.revisions()[0]["number"] == 6
        assert act() == 3
