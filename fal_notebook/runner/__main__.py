"""The commands of ``python runner.zip``, by which the gateway has runners.

``zygote FD`` forks them; ``launcher FD`` forks too, but each child starts as ``kept``. Those
two are for Linux; ``spawn`` is a runner without a parent that ends what it started, ``contained``
one whose container does. These read their spec from standard input. A last argument ``--libraries
DIR`` puts the runner's own dependencies at the end of sys.path, where whatever the user's
environment holds wins over them.
"""

from __future__ import annotations

import os
import sys


def main(arguments: list[str]) -> None:
    """Run the command; it imports no more than it needs."""
    if "--libraries" in arguments:
        sys.path.append(arguments[arguments.index("--libraries") + 1])
    command = arguments[0]
    serves = command in ("zygote", "launcher")
    # What the gateway had open, its log among it, is none of the user's business.
    kept = int(arguments[1]) if serves else 2
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    if serves:
        _serve(kept, command)
    else:
        _become(command)


def _serve(connection: int, command: str) -> None:
    from fal_notebook.runner import zygote

    if command == "zygote":
        from fal_notebook.runner.birth import become

        zygote.serve(connection, become)
    else:
        from fal_notebook.runner.launcher import execute

        zygote.serve(connection, execute)


def _become(command: str) -> None:
    from dataclasses import replace

    from fal_notebook.runner.birth import become
    from fal_notebook.runner.spec import RunnerSpec

    spec = RunnerSpec.from_json(sys.stdin.readline())
    if command == "contained":
        environment = {**os.environ, **spec.environment}
        spec = replace(spec, folder=os.getcwd(), environment=environment)
    become(spec, kept=command != "spawn")


if __name__ == "__main__":
    main(sys.argv[1:])
