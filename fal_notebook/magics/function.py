"""``%%fal_function``: the cell runs as always, then its function is deployed."""

from __future__ import annotations

from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import no_var_expand
from IPython.display import display

from fal_notebook import cell as cells
from fal_notebook import deploy
from fal_notebook.display import DeployView, captured_table
from fal_notebook.exceptions import OptionError
from fal_notebook.magics.notebook import identity
from fal_notebook.magics.parse import parse_line
from fal_notebook.magics.run_cell import run_cell
from fal_notebook.magics.usage import one_line
from fal_notebook.options import CellOptions, Options, help_text, split_options

_MAGIC = "%%fal_function"
_HELP = """Deploy the cell's last function (or ``entry=``) as an autoscaled HTTP app.

::

    %%fal_function [NAME] key=value …
    def predict(text: str) -> dict:
        ...

The name of the function is then bound to a handle: ``predict("hello")`` runs remotely,
``predict.url`` takes ``POST`` with JSON, ``predict.local("hello")`` runs here.

{options}
"""


class FunctionMagic:
    """The magic for one shell."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        help = _HELP.format(options=help_text())
        self.cell = _documented(self._cell, help)
        self.line = _documented(self._line, help)

    def _line(self, line: str) -> None:
        raise UsageError(f"{_MAGIC}: the cell is empty; write a function below this line")

    def _cell(self, line: str, cell: str) -> None:
        __tracebackhide__ = True
        with one_line(_MAGIC):
            options, cell_options = _parse(line, self._shell.user_ns)
        source = self._shell.transform_cell(cell)
        with one_line(_MAGIC):
            entry = cells.analyse(source, cell_options.entry).entry
        run_cell(self._shell, source)
        with one_line(_MAGIC):
            self._deploy(entry, options, cell_options)

    def _deploy(self, entry: str, options: Options, cell: CellOptions) -> None:
        function = self._shell.user_ns[entry]
        if cell.dry_run:
            display(captured_table(deploy.captured(function, options, cell)))
            return
        try:
            shown = _Shown()
            notebook = identity(self._shell)
            handle, progress = deploy.start(function, options, cell, notebook, shown.update)
            self._shell.user_ns[entry] = handle
            shown.show(DeployView(progress))
            if cell.wait:
                handle.wait()
        except KeyboardInterrupt:
            name = options.name or entry
            print(f"Detached: the deploy continues. Cancel it with: %fal cancel {name}")


class _Shown:
    """An output that is updated in place; it belongs to its cell from whatever thread."""

    def __init__(self) -> None:
        self._view: DeployView | None = None
        self._display: Any = None

    def show(self, view: DeployView) -> None:
        self._view = view
        self._display = display(view, display_id=True)

    def update(self) -> None:
        if self._display is not None:
            self._display.update(self._view)


def _parse(line: str, namespace: dict[str, Any]) -> tuple[Options, CellOptions]:
    name, values = parse_line(line, namespace)
    if name is not None and "name" in values:
        raise OptionError(f"the app has two names, {name!r} and name={values['name']!r}; give one")
    return split_options({**values, **({"name": name} if name is not None else {})})


def _documented(method: Any, help: str) -> Any:
    def magic(*arguments: str) -> None:
        __tracebackhide__ = True
        method(*arguments)

    magic.__doc__ = help
    return no_var_expand(magic)
