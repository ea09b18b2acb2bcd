"""Groups of commands whose help lists every command with its arguments and options."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

import click


class Commands(click.Group):
    """Commands that name the nearest one, or all, for one that does not exist."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is named first."""
        name = args[0]
        known = self.list_commands(ctx)
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            nearest = get_close_matches(name, known, n=1)
            meant = f"did you mean '{nearest[0]}'?" if nearest else f"there are {', '.join(known)}"
            ctx.fail(f"there is no command '{name}'; {meant}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write how each command is used, those of groups too."""
        rows = [
            (_usage(path, command), command.get_short_help_str(120))
            for path, command in _walk(self, "")
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _walk(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield all commands in the order of their definition, with the words that name them."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _walk(command, f"{path}{name} ")
        else:
            yield path + name, command


def _usage(path: str, command: click.Command) -> str:
    return " ".join([path, *map(_shown, command.params)])


def _shown(parameter: click.Parameter) -> str:
    name = parameter.metavar or str(parameter.name).upper()
    if isinstance(parameter, click.Option):
        name = _option(parameter, name)
    needed = parameter.required or parameter.nargs == -1 or name.startswith("[")
    return name if needed else f"[{name}]"


def _option(option: click.Option, name: str) -> str:
    written = min(option.opts, key=len)
    if option.is_flag:
        return written
    choices = option.type.choices if isinstance(option.type, click.Choice) else ()
    return f"{written} {'|'.join(map(str, choices)) or name}"
