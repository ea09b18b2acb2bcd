"""``%%fal_pyproject``: the cell is TOML, and each of its ``[tool.fal.apps.NAME]`` is deployed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fal_notebook import notebook, project_deploy
from fal_notebook.deploying import Deployment
from fal_notebook.exceptions import DeployError, FalNotebookError, OptionError
from fal_notebook.magics.output import Output
from fal_notebook.magics.parse import parse_line
from fal_notebook.magics.usage import one_line
from fal_notebook.options import help_text
from fal_notebook.project import read_cell
from fal_notebook.project_keys import ProjectApp

_MAGIC = "%%fal_pyproject"
_HELP = """Deploy the apps of a pyproject.toml, written as the cell.

::

    %%fal_pyproject [NAME] key=value …
    [tool.fal.apps.my-server]
    exposed_port = 8000
    keep_alive = 300

    [tool.fal.apps.my-server.image]
    dockerfile = "Dockerfile"

All of its apps are deployed, or the one that NAME says. Each is then bound to a handle under its
name, with ``_`` for ``-``: ``my_server.request("GET", "/…")``. Paths begin in the notebook's
folder. What the line says wins over the tables: ``wait=true``, ``keep_alive=60``. An app has one
of ``ref = "app.py::MyApp"``, ``python_entry_point = "my_package.app:MyApp"`` and a table ``image``,
which the first two may have as well; its further keys are options, all of them in the README.

{options}
"""


def cell_help() -> str:
    """Return what ``%%fal_pyproject?`` shows."""
    return _HELP.format(options=help_text())


class PyprojectMagic:
    """The magic for one shell."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell

    def cell(self, line: str, cell: str) -> None:
        """Deploy the apps of the cell; none, when a table is wrong or code is missing."""
        __tracebackhide__ = True
        with one_line(_MAGIC):
            name, values = parse_line(line, self._shell.user_ns)
            apps = _apps(cell, name)
            if "name" in values and len(apps) > 1:
                raise OptionError(
                    "name= is for one app, and the cell has more; say it in their tables"
                )
            for app in apps:
                project_deploy.check(app)
            self._deploy(apps, values)

    def _deploy(self, apps: Sequence[ProjectApp], values: Mapping[str, Any]) -> None:
        """Start all deploys, then wait for them if that is wanted; failures are told at the end."""
        started: list[tuple[Deployment, Output]] = []
        failures: list[str] = []
        for app in apps:
            try:
                started.append(self._start(app, values, alone=len(apps) == 1))
            except FalNotebookError as error:
                failures.append(_about(app, error) if len(apps) > 1 else str(error))
        if values.get("wait"):
            failures += self._wait(started)
        if failures:
            raise DeployError("; ".join(failures))

    def _start(
        self, app: ProjectApp, values: Mapping[str, Any], alone: bool
    ) -> tuple[Deployment, Output]:
        output = Output(self._shell, waited=alone and bool(values.get("wait")))
        deployment = project_deploy.deploy(app, values, output.update)
        deployment.accepted.result()
        self._shell.user_ns[app.name.replace("-", "_")] = deployment.handle
        output.follow(deployment.progress)
        return deployment, output

    def _wait(self, started: Sequence[tuple[Deployment, Output]]) -> list[str]:
        """Return what did not come up; the outputs show the logs."""
        failures = []
        try:
            for deployment, output in started:
                try:
                    deployment.handle.wait()
                except DeployError as error:
                    failures.append(str(error).splitlines()[0])
                output.end()
        except KeyboardInterrupt:
            print("Detached: the deploys continue. Cancel one with: %fal cancel NAME")
        return failures


def _apps(cell: str, name: str | None) -> list[ProjectApp]:
    project = read_cell(cell, "the cell", notebook.folder())
    return [project.app(each) for each in ([name] if name is not None else project.names)]


def _about(app: ProjectApp, error: FalNotebookError) -> str:
    text = str(error)
    return text if text.startswith((app.name, app.label)) else f"{app.name}: {text}"
