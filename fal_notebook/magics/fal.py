"""``%fal``: the commands of ``fal-notebook`` inside a notebook, imported when first used."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import no_var_expand
from IPython.display import display

_HELP = re.compile(r"(\s*%fal[ \t]+[^\s?].*?)\s*\?{1,2}\s*")
_MAGIC_HELP = re.compile(r"\s*(%fal|%%fal_function)\s*(\?{1,2})\s*")
# Left to the command, for there they are read as in a cell: not all of them are texts.
_PAIR = re.compile(r"[A-Za-z_][\w-]*=.*", re.DOTALL)


def line_magic(shell: Any) -> Any:
    """Return the magic for one shell."""

    @no_var_expand
    def fal(line: str) -> Any:
        """See and steer apps."""
        import click

        from fal_notebook import cli
        from fal_notebook.magics.usage import one_line

        names = shell.user_ns
        try:
            with one_line("%fal"):
                _show(cli.run(_words(line, names) or ["--help"], "%fal", names))
        except (KeyboardInterrupt, click.Abort):
            print("(interrupted)")

    # IPython asks for this before the docstring: the commands are listed when somebody asks.
    fal.getdoc = _help  # type: ignore[attr-defined]
    return fal


def _help() -> str:

    from fal_notebook import cli

    with cli.commands.make_context("%fal", [], resilient_parsing=True) as context:
        return cli.commands.get_help(context)


def asked_for_help(lines: list[str]) -> list[str]:
    """Make ``%fal scale?`` the help of that command; IPython would look for an object `scale`.

    And ``%fal? `` the same as ``%fal?``: IPython looks for a magic of that name.
    """
    text = "".join(lines)
    if match := _MAGIC_HELP.fullmatch(text):
        return [f"{match[1]}{match[2]}\n"]
    match = _HELP.fullmatch(text)
    return [f"{match[1]} --help\n"] if match else lines


def _words(line: str, variables: Mapping[str, Any]) -> list[str]:
    """Cut a line into words, with the notebook's variables put in as into a cell's options."""
    from fal_notebook.magics.parse import expand

    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"%fal: {error} in: {line}") from None
    return [word if _PAIR.fullmatch(word) else str(expand(word, variables)) for word in words]


def _show(shown: Any) -> None:
    from fal_notebook import cli

    if hasattr(shown, "_repr_html_"):
        display(shown)
        return
    for text in cli.as_lines(shown):
        print(text, flush=True)
