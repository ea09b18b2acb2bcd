"""Direct Server Mode: a server of the user's own, started by a cell, gets the traffic as it is."""

from __future__ import annotations

import sys
from typing import Any


def test_a_cell_with_a_command_answers_through_run(shell: Any) -> None:
    shell.run(
        "%%fal_server files exposed_port=8000 wait=true\n"
        f"echo hello > hello.txt; {sys.executable} -m http.server $PORT --bind 127.0.0.1"
    )
    answer = shell["files"].request("GET", "/hello.txt")
    assert (answer.status_code, answer.text) == (200, "hello\n")
