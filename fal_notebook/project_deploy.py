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
from fal_notebook.options import split_options
from fal_notebook.project_keys import ProjectApp
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
    with _loaded(app) as (found, further):
        given = {**app.options, **deploying.given_by(found), **further}
        given |= {key: app.options[key] for key in _OF_THE_TABLE if key in app.options}
        notices = [*app.notices, *_without_port(found, given)]
        options, cell = split_options({**given, **values})
        if isinstance(found, ServerImage):  # the line may have said another image
            found = replace(found, image=options.image or found.image)
        deployment = deploying.start(
            found, options, cell, app.name, on_change, notebook=app.identity
        )
        deployment.progress.notices[:0] = notices
        wait([deployment.accepted])  # it may have to be captured once more
    return deployment


def _without_port(found: Any, given: dict[str, Any]) -> list[str]:
    """Leave out the port on which fal's machines serve an `App`; return what to tell of it."""
    if not is_app(found) or given.pop("exposed_port", None) is None:
        return []
    return [_ANSWERS_BY_ITSELF]


@contextmanager
def _loaded(app: ProjectApp) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Give what is deployed, and options that follow from where it was found."""
    if not app.ref and not app.entry_point:
        yield ServerImage(app.name, app.options["image"]), {}
        return
    with _on_path(app.folder):
        if app.ref:
            with _of_file(app) as found:
                yield found, {}
        else:
            module, _, symbol = app.entry_point.partition(":")
            with _fresh(module.partition(".")[0], app.folder) as is_local:
                yield _symbol(app, module, symbol), _by_value(app, module, is_local)


@contextmanager
def _of_file(app: ProjectApp) -> Iterator[Any]:
    path, _, symbol = app.ref.partition("::")
    with ExitStack() as loaded:
        try:
            file = program.loaded(str(app.folder / Path(path).expanduser()), symbol)
            found, _ = loaded.enter_context(file)
        except CellError as error:
            raise CellError(f"{app.label}: ref={app.ref!r}: {error}") from None
        yield found


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Have the project's modules found: they lie in its folder or in ``src`` below."""
    before = list(sys.path)
    sys.path[:0] = [str(path) for path in (folder / "src", folder) if path.is_dir()]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _fresh(package: str, folder: Path) -> Iterator[bool]:
    """Have a package of the project read anew, for it may have changed; give whether it is one.

    Afterwards the notebook has the one that it had, if any.
    """
    if not _lies_in(package, folder):
        yield False
        return
    before = {name: sys.modules.pop(name) for name in _modules_of(package)}
    try:
        yield True
    finally:
        if before:
            for name in _modules_of(package):
                del sys.modules[name]
            sys.modules.update(before)


def _modules_of(package: str) -> list[str]:
    return [name for name in sys.modules if name == package or name.startswith(f"{package}.")]


def _lies_in(package: str, folder: Path) -> bool:
    """Say whether a package is a file or folder of the project, not one that is installed."""
    places = [
        base / name for base in (folder, folder / "src") for name in (package, f"{package}.py")
    ]
    return any(place.exists() for place in places)


def _symbol(app: ProjectApp, module: str, symbol: str) -> Any:
    where = f"{app.label}: python_entry_point={app.entry_point!r}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise CellError(
            f"{where} cannot be imported here: there is no module {error.name!r} in {app.folder}, "
            "in its src or among what is installed"
        ) from None
    if not callable(getattr(found, symbol, None)):
        raise CellError(f"{where}: {module} has no function or class {symbol!r}")
    return getattr(found, symbol)


def _by_value(app: ProjectApp, module: str, is_local: bool) -> dict[str, Any]:
    """Have a module of the project travel by value, unless the runner has it from elsewhere."""
    requirements = app.options.get("requirements") or []
    flat = [one for item in requirements for one in (item if isinstance(item, list) else [item])]
    brought = any(one.startswith("/") for one in flat)
    return {"local_python_modules": [module.partition(".")[0]]} if is_local and not brought else {}
