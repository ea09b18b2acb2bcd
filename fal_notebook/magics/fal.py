"""``%fal``: the commands of ``fal-notebook`` inside a notebook, imported when first used."""

from __future__ import annotations

import re
import shlex
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import no_var_expand
from IPython.display import display

_HELP = re.compile(r"(\s*%fal[ \t]+\S.*?)\s*\?{1,2}\s*")


@no_var_expand
def fal(line: str) -> Any:
    """See and steer apps; ``%fal COMMAND?`` explains a command.

    ::

        %fal status [NAME]
        %fal runners [NAME]
        %fal logs NAME [-f] [--runner ID] [--request ID] [--level LEVEL] [--tail N]
        %fal scale NAME key=value …
        %fal deploy FILE[::FUNCTION] key=value …
        %fal cancel NAME
        %fal delete NAME
        %fal gateway start | stop | status
        %fal keys create [--scope API|ADMIN] [--alias TEXT] [--user NAME] | list | revoke KEY_ID
        %fal client-env [--sh | --python | --js] [--key]
        %fal secrets set NAME [--from-env] | list | delete NAME
    """
    import click

    from fal_notebook import cli
    from fal_notebook.magics.usage import one_line

    try:
        with one_line("%fal"):
            _show(cli.run(_words(line) or ["--help"], "%fal"))
    except (KeyboardInterrupt, click.Abort):
        print("(interrupted)")


def asked_for_help(lines: list[str]) -> list[str]:
    """Make ``%fal scale?`` the help of that command; IPython would look for an object `scale`."""
    match = _HELP.fullmatch("".join(lines))
    return [f"{match[1]} --help\n"] if match else lines


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"%fal: {error} in: {line}") from None


def _show(shown: Any) -> None:
    from fal_notebook import cli
    from fal_notebook.display import Table

    if isinstance(shown, Table):
        display(shown)
        return
    for text in cli.as_lines(shown):
        print(text, flush=True)
