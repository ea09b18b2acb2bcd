"""``%%fal_app``: the cell runs as always, then its last `App` class is deployed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fal_notebook.app import is_app
from fal_notebook.app_handle import AppHandle
from fal_notebook.exceptions import CellError
from fal_notebook.magics.cell_code import CellCode
from fal_notebook.magics.function import FunctionMagic
from fal_notebook.options import APP_DEFAULTS, help_text
from fal_notebook.sdk_app import is_sdk_app

_HELP = """Deploy the cell's last `App` class (or ``entry=``) as an autoscaled HTTP app.

::

    %%fal_app [NAME] key=value …
    class Painter(fal.App, keep_alive=300):
        def setup(self): ...

        @fal.endpoint("/generate")
        def generate(self, prompt: str) -> dict: ...

The name of the class is then bound to a handle: ``Painter.generate(prompt="a cat")`` runs
remotely, ``Painter.url + "/generate"`` takes ``POST`` with JSON. What the line says wins over the
class.

{options}
"""


def cell_help() -> str:
    """Return what ``%%fal_app?`` shows."""
    return _HELP.format(options=help_text(APP_DEFAULTS))


class AppMagic(FunctionMagic):
    """The magic for one shell."""

    magic = "%%fal_app"

    def candidates(self, code: CellCode, wanted: str | None) -> Sequence[str]:
        """Return the classes of the cell; which of them are apps is known when it has run."""
        names = code.classes()
        if wanted is not None and wanted not in names:
            listed = ", ".join(f"`{name}`" for name in names)
            raise CellError(f"the cell does not define a class `{wanted}`; it defines {listed}")
        return names if wanted is None else [wanted]

    def chosen(self, names: Sequence[str]) -> str:
        """Return the last name that is an app; errors as of the base."""
        values = self._shell.user_ns
        apps = [name for name in names if _is_app(values.get(name))]
        if not apps:
            raise CellError(f"`{names[-1]}` is no app; derive it from fal_notebook.App")
        return apps[-1]


def _is_app(value: Any) -> bool:
    return is_app(value) or is_sdk_app(value) or isinstance(value, AppHandle)
