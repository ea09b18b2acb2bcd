"""``%%fal_server``: the cell is a command, or a function, that starts a server that exists."""

from __future__ import annotations

import re
from typing import Any

from fal_notebook.deploy_checks import NEEDS_DOCKER
from fal_notebook.exceptions import OptionError
from fal_notebook.handle import Handle
from fal_notebook.magics.function import FunctionMagic, split_line
from fal_notebook.magics.parse import parse_line
from fal_notebook.magics.usage import one_line
from fal_notebook.options import CellOptions, Options, help_text
from fal_notebook.server_command import ServerCommand

_MAGIC = "%%fal_server"
_LANG = re.compile(r"(^|\s)(--)?lang=\S+")
_LANGUAGES = ("sh", "python", "dockerfile")
_HELP = """Deploy a server that you have: all requests go to its port, unchanged.

::

    %%fal_server NAME exposed_port=8000 [lang=sh|python] key=value …
    my-server --host 127.0.0.1 --port {{port}}

The cell is a shell command; with ``lang=python`` it is Python, whose last function starts the
server. ``{{port}}`` in a command, ``$PORT`` and a function's parameter ``port`` are the runner's
own port, so that several runners live on one machine; a server that listens on ``exposed_port``
whatever they say gets one runner at a time. NAME is then bound to a handle:
``NAME.request("GET", "/…")``, ``NAME.url``.

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
            lang = _language(values.pop("lang", "sh"))
            _check(values)
            if lang == "sh":
                self._start(cell, *split_line(name, values))
        if lang == "python":
            super().cell(_LANG.sub(" ", line), cell)

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
        name = _identifier(options.name or "")
        if not name:
            raise OptionError(f"the app has no name; write {_MAGIC} NAME exposed_port=…")
        if not cell.strip():
            raise OptionError("the cell is empty; write the command that starts the server")
        self._send(ServerCommand(name, cell), name, options, cell_options, "")


def _language(lang: Any) -> str:
    if lang not in _LANGUAGES:
        raise OptionError(f"lang={lang} is not allowed: {' or '.join(_LANGUAGES)}")
    if lang == "dockerfile":
        raise OptionError(NEEDS_DOCKER.format("a Dockerfile"))
    return str(lang)


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def _check(values: dict[str, Any]) -> None:
    if values.get("exposed_port") is None:
        raise OptionError("exposed_port is missing; write the port that the server listens on")
