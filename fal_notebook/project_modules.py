"""The modules of a project: found, read anew for each deploy, and sent along by value."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Never set aside: this package, and what runs.
_NOT_READ_ANEW = frozenset({"__main__", "fal_notebook"})


@contextmanager
def on_path(folder: Path) -> Iterator[None]:
    """Have the project's modules found: they lie in its folder or in ``src`` below."""
    before = list(sys.path)
    sys.path[:0] = [str(path) for path in (folder / "src", folder) if path.is_dir()]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def fresh(folder: Path) -> Iterator[Callable[[str], list[str]]]:
    """Have the project's modules read anew, for they may have changed.

    Gives a function that returns the packages and modules that have been read, or that a source
    names and will be. Afterwards the notebook has those that it had.
    """
    before = {name: sys.modules.pop(name) for name in _modules_in(folder)}

    def read(source: str) -> list[str]:
        for text in (source, *map(_source_of, _modules_in(folder))):
            _import_named(folder, text)
        return sorted({name.partition(".")[0] for name in _modules_in(folder)})

    try:
        yield read
    finally:
        tops = {name.partition(".")[0] for name in before}
        for name in _modules_in(folder):
            if name.partition(".")[0] in tops:
                del sys.modules[name]
        sys.modules.update(before)


def by_value(options: Mapping[str, Any], modules: list[str]) -> list[str]:
    """Return the modules that travel by value: none where a requirement brings them."""
    requirements = options.get("requirements") or []
    flat = [one for item in requirements for one in (item if isinstance(item, list) else [item])]
    return [] if any(one.startswith("/") for one in flat) else modules


def _import_named(folder: Path, source: str) -> None:
    """Import the project's modules that a source names anywhere, and those that these name."""
    for name in sorted(_named(source)):
        if name not in sys.modules and _is_there(folder, name):
            importlib.import_module(name)
            _import_named(folder, _source_of(name))


def _source_of(name: str) -> str:
    file = getattr(sys.modules[name], "__file__", None) or ""
    return Path(file).read_text(encoding="utf-8") if file.endswith(".py") else ""


def _named(source: str) -> set[str]:
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _modules_in(folder: Path) -> list[str]:
    """Return the loaded modules that are the project's own, or stand where one of them belongs."""
    root = os.path.join(os.path.realpath(folder), "")
    own = {name for name, module in list(sys.modules.items()) if _lies_in(root, module)}
    tops = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
    own |= {name for name in tops if _is_there(folder, name)}
    own = {name.partition(".")[0] for name in own} - _NOT_READ_ANEW
    return [name for name in sys.modules if name.partition(".")[0] in own]


def _lies_in(root: str, module: Any) -> bool:
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    if not isinstance(file, str) or "site-packages" in file:
        return False
    return os.path.realpath(file).startswith(root)


def _is_there(folder: Path, name: str) -> bool:
    """Say whether a project has a module or package of that name: another one is not it."""
    bases = (folder, folder / "src")
    return any(
        (base / file).is_file() for base in bases for file in (f"{name}.py", f"{name}/__init__.py")
    )
