"""``%%fal_server``: the cell is a command, or a function, that starts a server that exists."""

from __future__ import annotations

import re
from typing import Any

from fal_notebook.container import ContainerImage
from fal_notebook.exceptions import OptionError
from fal_notebook.handle import Handle
from fal_notebook.magics.function import FunctionMagic, split_line
from fal_notebook.magics.parse import parse_line
from fal_notebook.magics.usage import one_line
from fal_notebook.magics.values import LANGUAGES
from fal_notebook.options import CellOptions, Options, help_text
from fal_notebook.server_command import ServerCommand
from fal_notebook.server_image import (
    ServerImage,
    begins_like_dockerfile,
    first_line,
    is_dockerfile,
    with_commands,
)

_MAGIC = "%%fal_server"
_LANG = re.compile(r"(^|\s)(--)?lang=\S+")
_COMMANDS = ("cmd", "entrypoint")
_HELP = """Deploy a server that you have: all requests go to its port, unchanged.

::

    %%fal_server NAME exposed_port=8000 [lang=sh|python|dockerfile] key=value …
    my-server --host 127.0.0.1 --port {{port}}

    %%fal_server NAME exposed_port=8000 image="my-org/my-server" [cmd=…] [entrypoint=…]

The cell is a shell command; with ``lang=python`` it is Python, whose last function starts the
server. ``{{port}}`` in a command, ``$PORT`` and a function's parameter ``port`` are the runner's
own port, so that several runners live on one machine; a server that listens on ``exposed_port``
whatever they say gets one runner at a time. It runs in a folder of its own, into which
``app_files=["server.py"]`` puts files from beside the notebook.

A cell that begins with ``FROM`` (or ``from IMAGE``) or ``ARG`` is a Dockerfile, built beside the
notebook. Its image, or with an empty cell that of ``image=``, runs as it is; its server has to
listen on ``0.0.0.0`` and `exposed_port`.

NAME is then bound to a handle: ``NAME.request("GET", "/…")``, ``NAME.url``.

{options}
"""


def cell_help() -> str:
    """Return what ``%%fal_server?`` shows."""
    return _HELP.format(options=help_text())


class ServerMagic(FunctionMagic):
    """The magic for one shell."""

    magic = _MAGIC

    def cell(self, line: str, cell: str) -> None:
        """Deploy the cell."""
        __tracebackhide__ = True
        with one_line(_MAGIC):
            name, values = parse_line(line, self._shell.user_ns)
            lang = _language(values.pop("lang", None), cell)
            _check(values)
            commands = {key: values.pop(key) for key in _COMMANDS if key in values}
            if lang == "dockerfile":
                self._start_image(name, {**values, "image": _built(cell, values)}, commands)
            elif lang == "sh" and "image" in values and not first_line(cell):
                self._start_image(name, values, commands)
            elif commands:
                raise OptionError(f"{min(commands)} is for images; write the command into the cell")
            elif lang == "sh":
                self._start(cell, *split_line(name, values))
        if lang == "python":
            super().cell(_LANG.sub(" ", line), cell)

    def _start_image(
        self, name: str | None, values: dict[str, Any], commands: dict[str, Any]
    ) -> None:
        image = with_commands(values["image"], commands)
        options, cell_options = split_line(name, {**values, "image": image})
        own = _named(options)
        self._send(ServerImage(own, options.image or ""), own, options, cell_options, "")

    def _send(self, function: Any, entry: str, options: Options, *cell: Any) -> None:
        """Bind NAME too, where the cell's function is called otherwise."""
        __tracebackhide__ = True
        try:
            super()._send(function, entry, options, *cell)
        finally:
            names = self._shell.user_ns
            if options.name and isinstance(names.get(entry), Handle):
                names[_identifier(options.name)] = names[entry]

    def _start(self, cell: str, options: Options, cell_options: CellOptions) -> None:
        name = _named(options)
        if not cell.strip():
            raise OptionError(
                "the cell is empty; write the command that starts the server, or give image="
            )
        self._send(ServerCommand(name, cell), name, options, cell_options, "")


def _language(lang: Any, cell: str) -> str:
    if lang is None:
        if not is_dockerfile(cell) and begins_like_dockerfile(cell):
            raise OptionError(
                "the cell begins like a Dockerfile, but not with FROM IMAGE: begin with that, or "
                "say lang=dockerfile; of a shell command say lang=sh"
            )
        return "dockerfile" if is_dockerfile(cell) else "sh"
    if lang not in LANGUAGES:
        raise OptionError(f"lang={lang} is not allowed: {' or '.join(LANGUAGES)}")
    return str(lang)


def _built(cell: str, values: dict[str, Any]) -> ContainerImage:
    """Return the image of a Dockerfile; without a folder its context is that of the notebook."""
    if values.get("image") is not None:
        raise OptionError("the cell is a Dockerfile and image says another; give one of them")
    return ContainerImage(cell)


def _named(options: Options) -> str:
    """Return the app's name as a variable's."""
    if not options.name:
        raise OptionError(f"the app has no name; write {_MAGIC} NAME exposed_port=…")
    return _identifier(options.name)


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def _check(values: dict[str, Any]) -> None:
    if values.get("exposed_port") is None:
        raise OptionError("exposed_port is missing; write the port that the server listens on")
