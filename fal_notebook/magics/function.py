"""``%%fal_function``: the cell runs as always, then its function is deployed."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from IPython.display import display

from fal_notebook import deploying, discovery, sdk_app, settings
from fal_notebook.display import captured_table, inherited_lines
from fal_notebook.exceptions import CellError, DeployError, OptionError
from fal_notebook.handle import Handle
from fal_notebook.magics import missing_sdk
from fal_notebook.magics.cell_code import CellCode
from fal_notebook.magics.output import Output
from fal_notebook.magics.parse import parse_line
from fal_notebook.magics.usage import one_line
from fal_notebook.options import CellOptions, Options, help_text, option_help, split_options
from fal_notebook.payload import Payload

_HELP = """Deploy the cell's last function (or ``entry=``) as an autoscaled HTTP app.

::

    %%fal_function [NAME] key=value …
    def predict(text: str) -> dict:
        ...

The name of the function is then bound to a handle: ``predict("hello")`` runs remotely,
``predict.url`` takes ``POST`` with JSON, ``predict.local("hello")`` runs here.

{options}
"""


def cell_help() -> str:
    """Return what ``%%fal_function?`` shows."""
    return _HELP.format(options=help_text())


class FunctionMagic:
    """The magic for one shell."""

    magic = "%%fal_function"

    def __init__(self, shell: Any) -> None:
        self._shell = shell

    def cell(self, line: str, cell: str) -> None:
        """Run the cell, then deploy what it defines."""
        __tracebackhide__ = True
        namespace = self._shell.user_ns
        code = CellCode(self._shell, cell)
        with one_line(self.magic):
            wanted = _check(line, BeforeCell(namespace, code.defined()))
            names = self.candidates(code, wanted)
        before = {n: namespace[n] for n in names if isinstance(namespace.get(n), Handle)}
        try:
            self._run(code)
            with one_line(self.magic):
                self._deploy(self.chosen(names), *parse_line(line, namespace), code.source)
        finally:
            # What was not deployed leaves the handle of what runs in its place.
            for name, handle in before.items():
                if not isinstance(namespace.get(name), Handle):
                    namespace[name] = handle

    def candidates(self, code: CellCode, wanted: str | None) -> Sequence[str]:
        """Return the names of which one may be deployed, before the cell runs."""
        return [code.entry(wanted)]

    def chosen(self, names: Sequence[str]) -> str:
        """Return the name that is deployed when the cell has run.

        Raises
        ------
        CellError
            When there is none.
        """
        if not callable(self._shell.user_ns.get(names[-1])):
            raise CellError(f"`{names[-1]}` is not a function when the cell has run")
        return names[-1]

    def _run(self, code: CellCode) -> None:
        __tracebackhide__ = True
        try:
            with sdk_app.main_file(code.source):
                code.run()
        except ModuleNotFoundError as error:
            if error.name != missing_sdk.NAME:
                raise
            with one_line(self.magic):
                raise CellError(missing_sdk.SENTENCE) from None

    def _deploy(self, entry: str, name: str | None, values: dict[str, Any], source: str) -> None:
        function = self._shell.user_ns[entry]
        options = split_line(name, {**deploying.given_by(function), **values})
        self._send(function, entry, *options, source)

    def _send(
        self, function: Any, entry: str, options: Options, cell: CellOptions, source: str
    ) -> None:
        """Deploy what was made ready, and bind `entry` to its handle."""
        if cell.dry_run:
            _show_captured(*deploying.dry_run(function, options, cell, entry))
            return
        output = Output(self._shell, bool(cell.wait))
        # A gateway takes seconds to start; without it there is only the output to tell more.
        at_once = output.attended and not cell.wait and not discovery.is_up(settings.state_folder())
        deployment = deploying.start(function, options, cell, entry, output.update, source)
        with self._detached_by_interrupt(entry, deployment):
            if not at_once:
                deployment.accepted.result()
            deployment.progress.notices += self._others(entry, deployment.handle)
            self._shell.user_ns[entry] = deployment.handle
            output.follow(deployment.progress)
            if cell.wait:
                self._wait(deployment, output)

    def _others(self, entry: str, handle: Handle) -> Iterator[str]:
        """Yield a note for each other function of the notebook that the app might be taken for."""
        at, names = (handle.owner, handle.name), self._shell.user_ns
        for name, other in names.items():
            named_alike = name.replace("_", "-") == handle.name.replace("_", "-")
            if inspect.isfunction(other) and named_alike and name != entry:
                yield (
                    f"the app {handle.name} runs `{entry}` and not the function `{name}`; "
                    "entry= names another function of the cell"
                )
            if isinstance(other, Handle) and (other.owner, other.name) == at and name != entry:
                function = getattr(other, "__wrapped__", None)
                if name == getattr(function, "__name__", None):
                    yield (
                        f"`{name}` is a handle of the app {handle.name} too, and runs `{entry}` "
                        "now; give one of them another name: %%fal_function NAME"
                    )

    def _wait(self, deployment: deploying.Deployment, output: Output) -> None:
        try:
            deployment.handle.wait()
        except DeployError as error:
            # The output shows the log, so the error need not.
            raise DeployError(str(error).splitlines()[0]) from None
        finally:
            output.end()

    @contextmanager
    def _detached_by_interrupt(
        self, entry: str, deployment: deploying.Deployment
    ) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self._shell.user_ns[entry] = deployment.handle
            name = deployment.handle.name
            print(f"Detached: the deploy continues. Cancel it with: %fal cancel {name}")


class BeforeCell(Mapping[str, Any]):
    """The notebook's names before a cell runs; what the cell itself defines is not known yet.

    Attributes
    ----------
    asked : bool
        Whether somebody wanted to know one of those.
    """

    def __init__(self, namespace: Mapping[str, Any], defined: Collection[str]) -> None:
        self._names = {**namespace, **dict.fromkeys(defined)}
        self._defined = defined
        self.asked = False

    def __getitem__(self, name: str) -> Any:
        self.asked = self.asked or name in self._defined
        return self._names[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _check(line: str, names: BeforeCell) -> str | None:
    """Refuse a wrong line before its cell runs, as far as can be told; return its ``entry``."""
    name, values = parse_line(line, names)
    if not names.asked:
        split_line(name, values)
    return values.get("entry")


def _show_captured(payload: Payload, inherited: dict[str, Any], notices: list[str]) -> None:
    display(captured_table(payload))
    for line in inherited_lines(inherited):
        print(line)
    for note in (*notices, *payload.warnings):
        print(f"note: {note}")


def split_line(name: str | None, values: dict[str, Any]) -> tuple[Options, CellOptions]:
    """Return the options of a parsed line; a name that is an option's is refused."""
    if name is not None:
        _refuse_option(name)
    return split_options({**values, **({"name": name} if name is not None else {})})


def _refuse_option(word: str) -> None:
    key = word.replace("-", "_")
    kind = next((item.type for item in option_help() if item.name == key), None)
    if kind is not None:
        value = "true" if kind.startswith("bool") else "…"
        raise OptionError(
            f"{word!r} is an option and not the app's name; write {key}={value}, or name={word} "
            "if the app is called so"
        )
