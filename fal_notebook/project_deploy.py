"""Deploy an app of a pyproject.toml: its file or module is loaded, then it goes as any other."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fal_notebook import deploying, program
from fal_notebook.app import is_app
from fal_notebook.exceptions import CellError, OptionError
from fal_notebook.options import Options, split_options
from fal_notebook.project_keys import ProjectApp
from fal_notebook.project_modules import by_value, fresh, on_path
from fal_notebook.server_image import ServerImage

# Here the table wins over the class, as in fal; elsewhere the class does.
_OF_THE_TABLE = ("name", "auth", "exposed_port")
_ANSWERS_BY_ITSELF = "exposed_port is for servers: an App answers by its endpoints, on every port"


def deploy(
    app: ProjectApp, values: Mapping[str, Any], on_change: Callable[[], None] = lambda: None
) -> deploying.Deployment:
    """Load an app's code and start its deploy; return when that is accepted or refused.

    Parameters
    ----------
    values : mapping
        Options as of a cell, which win over those of the table.

    Raises
    ------
    OptionError
        About options that cannot be, or do not go together.
    CellError
        When the code is not there; what it raises itself leaves as it is.
    """
    _, cell = split_options(values)
    if cell.entry is not None or cell.dry_run:
        raise OptionError(
            "an app of pyproject.toml takes neither entry nor dry_run; ref says what is deployed"
        )
    with _loaded(app) as (found, modules):
        given = {**app.options, **deploying.given_by(found)}
        given |= {key: app.options[key] for key in _OF_THE_TABLE if key in app.options}
        notices = [*app.notices, *_without_port(found, given)]
        options, cell = split_options({**given, **values})
        options = _with_modules(options, modules)
        if isinstance(found, ServerImage):  # the line may have said another image
            found = replace(found, image=options.image or found.image)
        deployment = deploying.start(
            found, options, cell, app.name, on_change, notebook=app.identity
        )
        deployment.progress.notices[:0] = notices
        wait([deployment.accepted])  # it may have to be captured once more
    return deployment


def check(app: ProjectApp) -> None:
    """Refuse an app whose code is not there, as far as that is seen without running any of it."""
    if app.ref:
        with _about_ref(app):
            program.read(*_file(app))
    elif app.entry_point:
        package = app.entry_point.partition(":")[0].partition(".")[0]
        with on_path(app.folder):
            if package not in sys.modules and importlib.util.find_spec(package) is None:
                raise _no_module(app, package)


def _with_modules(options: Options, modules: list[str]) -> Options:
    """Add to the modules that are named those of the project."""
    names = sorted({*(options.local_python_modules or ()), *modules})
    return options.model_copy(update={"local_python_modules": names}) if modules else options


def _without_port(found: Any, given: dict[str, Any]) -> list[str]:
    """Leave out the port on which fal's machines serve an `App`; return what to tell of it."""
    if not is_app(found) or given.pop("exposed_port", None) is None:
        return []
    return [_ANSWERS_BY_ITSELF]


@contextmanager
def _loaded(app: ProjectApp) -> Iterator[tuple[Any, list[str]]]:
    """Give what is deployed, and the modules of the project that travel with it."""
    if not app.ref and not app.entry_point:
        yield ServerImage(app.name, app.options["image"]), []
        return
    load = _of_file if app.ref else _of_module
    with on_path(app.folder), fresh(app.folder) as read, load(app) as found:
        yield found, by_value(app.options, read(_source(app)))


def _source(app: ProjectApp) -> str:
    """Return the source of a `ref`, which nothing imports."""
    file = app.ref.partition("::")[0]
    return (app.folder / Path(file).expanduser()).read_text() if file else ""


@contextmanager
def _of_file(app: ProjectApp) -> Iterator[Any]:
    with ExitStack() as loaded:
        with _about_ref(app):
            found, _ = loaded.enter_context(program.loaded(*_file(app)))
        yield found


@contextmanager
def _about_ref(app: ProjectApp) -> Iterator[None]:
    try:
        yield
    except CellError as error:
        raise CellError(f"{app.label}: ref={app.ref!r}: {error}") from None


def _file(app: ProjectApp) -> tuple[str, str]:
    path, _, symbol = app.ref.partition("::")
    return str(app.folder / Path(path).expanduser()), symbol


@contextmanager
def _of_module(app: ProjectApp) -> Iterator[Any]:
    module, _, symbol = app.entry_point.partition(":")
    yield _symbol(app, module, symbol)


def _symbol(app: ProjectApp, module: str, symbol: str) -> Any:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise _no_module(app, error.name) from None
    if not callable(getattr(found, symbol, None)):
        raise CellError(f"{_entry_point(app)}: {module} has no function or class {symbol!r}")
    return getattr(found, symbol)


def _no_module(app: ProjectApp, name: str) -> CellError:
    return CellError(
        f"{_entry_point(app)} cannot be imported here: there is no module {name!r} in "
        f"{app.folder}, in its src or among what is installed"
    )


def _entry_point(app: ProjectApp) -> str:
    return f"{app.label}: python_entry_point={app.entry_point!r}"
