"""``python runner.zip zygote FD`` forks runners; ``python runner.zip spawn`` becomes one.

A last argument ``--libraries DIR`` puts the runner's own dependencies at the end of sys.path,
where whatever the user's environment holds wins over them.
"""

from __future__ import annotations

import os
import sys


def main(arguments: list[str]) -> None:
    """Run the command; a spawned runner reads its spec from standard input."""
    if "--libraries" in arguments:
        sys.path.append(arguments[arguments.index("--libraries") + 1])
    # What the gateway had open, its log among it, is none of the user's business.
    kept = int(arguments[1]) if arguments[0] == "zygote" else 2
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
    from fal_notebook.runner import zygote
    from fal_notebook.runner.spec import RunnerSpec

    if arguments[0] == "zygote":
        zygote.serve(kept)
    else:
        zygote.become(RunnerSpec.from_json(sys.stdin.readline()), kept=False)


if __name__ == "__main__":
    main(sys.argv[1:])
