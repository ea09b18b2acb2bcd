"""Cells of ``%%fal_function`` for tests, and what is said of them."""

from __future__ import annotations

import re
import sys
import textwrap
from typing import Any

import pytest
from IPython.core.error import UsageError

from fal_notebook import cli, sync
from fal_notebook.handle import shared_client

# Old releases of which there are wheels for this Python.
OLD = (
    {"pydantic": "2.6.0", "typing-extensions": "4.8.0"}
    if sys.version_info < (3, 13)
    else {"pydantic": "2.8.0", "typing-extensions": "4.12.2"}
)
OLD_PINS = [f"{name}=={version}" for name, version in OLD.items()]
ONE = "def one() -> int:\n    return 1\n"


def cell(line: str, body: str) -> str:
    """Return a cell that deploys `body`."""
    return f"%%fal_function {line}\n{textwrap.dedent(body)}"


def refusal(shell: Any, source: str) -> str:
    """Return what a wrong cell is told."""
    with pytest.raises(UsageError) as caught:
        shell.run(source)
    return str(caught.value)


def plain(text: str) -> str:
    """Return text without its colours."""
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def listed(shell: Any) -> list[dict[str, Any]]:
    """Return the status of every app."""
    return sync.wait(shared_client().apps())


def apps(shell: Any) -> str:
    """Return what ``%fal status`` shows."""
    return repr(cli.run(["status"], "%fal"))


# Two functions that share a variable of the one around them.
COUNTER = """
def made():
    n = 0
    def inc():
        nonlocal n
        n += 1
    def get(): return n
    return inc, get
inc, get = made()
"""
