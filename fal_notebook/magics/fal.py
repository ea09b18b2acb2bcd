"""``%fal``: the commands of ``fal-notebook`` inside a notebook."""

from __future__ import annotations

import shlex
from typing import Any

from IPython.core.magic import no_var_expand
from IPython.display import display

from fal_notebook import cli
from fal_notebook.display import Table
from fal_notebook.magics.usage import one_line


@no_var_expand
def fal(line: str) -> Any:
    """See and steer apps.

    ::

        %fal status [NAME]
        %fal runners NAME
        %fal logs NAME [-f] [--runner ID] [--request ID] [--tail N]
        %fal scale NAME key=value …
        %fal cancel NAME
        %fal delete NAME
        %fal gateway start | stop | status
        %fal keys create [--scope API|ADMIN] [--alias TEXT] | list | revoke KEY_ID
    """
    with one_line("%fal"):
        shown = cli.run(shlex.split(line) or ["--help"], "%fal")
        if isinstance(shown, Table):
            display(shown)
            return
        try:
            for text in cli.as_lines(shown):
                print(text, flush=True)
        except KeyboardInterrupt:
            print("(stopped following)")
