"""Deploy a function or an `App` class of a Python file, as its cell would be deployed."""

from __future__ import annotations

import ast
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fal_notebook import deploying
from fal_notebook.app import is_app
from fal_notebook.cell import analyse, classes
from fal_notebook.exceptions import CellError, OptionError
from fal_notebook.options import split_options
from fal_notebook.sdk_app import is_sdk_app


def deploy_file(
    target: str, values: Mapping[str, Any], on_change: Callable[[], None] = lambda: None
) -> deploying.Deployment:
    """Run ``FILE[::NAME]`` and deploy its function or class.

    By default that is the file's last `App` class, where it has none its last function. The file
    is ``__main__`` until the deploy is accepted, so that it is captured by value like a cell; what
    stands below ``if __name__ == "__main__":`` is left out.

    Raises
    ------
    CellError
        When there is no such file, function or app; what the file raises leaves as it is.
    """
    _, cell = split_options(values)
    if cell.entry is not None or cell.dry_run:
        raise OptionError("give the function or class as FILE::NAME; dry_run is for cells")
    name, _, wanted = target.partition("::")
    with loaded(name, wanted) as (found, entry):
        options, cell = split_options({**deploying.given_by(found), **values})
        deployment = deploying.start(found, options, cell, entry, on_change)
        wait([deployment.accepted])  # it may have to be captured once more
    return deployment


@contextmanager
def loaded(name: str, wanted: str = "") -> Iterator[tuple[Any, str]]:
    """Run a file and give its function or class, with its name; raises as `deploy_file`.

    Within the block the file is ``__main__``: there it is captured.
    """
    path, source, found = read(name, wanted)
    with _as_main(path) as namespace:
        exec(_compiled(source, path), namespace)
        entry = _entry(source, found, wanted, namespace)
        if not callable(namespace.get(entry)):
            raise CellError(f"`{entry}` is not a function when {name} has run")
        yield namespace[entry], entry


def read(name: str, wanted: str = "") -> tuple[Path, str, tuple[str, ...]]:
    """Return a file's path, source and classes, when it defines what is wanted; nothing runs."""
    path = Path(os.path.expanduser(name))  # no shell has done so for a notebook
    try:
        source = path.read_text()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CellError(f"{name} cannot be read: {reason}") from None
    try:
        ast.parse(source, name)
    except SyntaxError as error:  # our frames, and the command line's, would say nothing
        told = "".join(traceback.format_exception_only(error)).strip()
        raise CellError(f"{name} is no Python:\n  {told}") from None
    return path, source, _classes(name, source, wanted or None)


def _classes(name: str, source: str, wanted: str | None) -> tuple[str, ...]:
    """Return the file's classes, after a look whether it defines what is wanted."""
    try:
        names = classes(source)
    except CellError:
        names = ()
    if wanted not in names if wanted else not names:
        analyse(source, wanted, name, names)
    return names


def _entry(source: str, found: tuple[str, ...], wanted: str, namespace: Mapping[str, Any]) -> str:
    apps = [name for name in found if _is_app(namespace.get(name))]
    if wanted in found and wanted not in apps:
        raise CellError(f"`{wanted}` is no app; derive it from fal_notebook.App")
    if wanted:
        return wanted
    return apps[-1] if apps else analyse(source).entry


def _is_app(value: Any) -> bool:
    return is_app(value) or is_sdk_app(value)


@contextmanager
def _as_main(path: Path) -> Iterator[dict[str, Any]]:
    """Have the file's names as ``__main__`` and its folder on the path, then what was."""
    module, before, folder = types.ModuleType("__main__"), sys.modules["__main__"], path.resolve()
    module.__file__ = str(path)
    sys.modules["__main__"] = module
    sys.path.insert(0, str(folder.parent))
    try:
        yield vars(module)
    finally:
        sys.modules["__main__"] = before
        with suppress(ValueError):  # the file may have removed it itself
            sys.path.remove(str(folder.parent))


def _compiled(source: str, path: Path) -> types.CodeType:
    tree = _NoProgram().visit(ast.parse(source))
    return compile(tree, str(path.resolve()), "exec", dont_inherit=True)


class _NoProgram(ast.NodeTransformer):
    """Takes ``__name__ == "__main__"`` for false, while classes still belong to ``__main__``."""

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """Replace the comparison, whichever way round it stands."""
        sides = {ast.unparse(side) for side in (node.left, *node.comparators)}
        if sides == {"__name__", "'__main__'"} and isinstance(node.ops[0], ast.Eq):
            return ast.copy_location(ast.Constant(False), node)
        return node
