"""Python modules that lie beside the notebook: loading them, shipping them by value, missing ones.

A runner has neither the notebook's folder nor its sys.path, so such a module travels inside.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import cloudpickle

from fal_notebook.exceptions import CaptureError

_OWN_FOLDER = Path(__file__).resolve().parents[1]
# What fal's own SDK has every pickle take along, FAL_KEY included; runners import it instead.
_SDK = ("fal", "tblib")
_INSTALLED = {"site-packages", "dist-packages"}


def load(names: Sequence[str]) -> dict[str, types.ModuleType]:
    """Import the named modules and return them with their submodules that are loaded.

    Raises
    ------
    CaptureError
        When a name cannot be imported.
    """
    loaded: dict[str, types.ModuleType] = {}
    for name in names:
        if name.split(".")[0] in sys.stdlib_module_names:
            raise CaptureError(
                f"local_python_modules names `{name}`, which is part of Python; leave it out"
            )
        try:
            loaded[name] = importlib.import_module(name)
        except ImportError as error:
            raise CaptureError(
                f"local_python_modules names `{name}`, which cannot be imported: {error}"
            ) from error
        loaded.update(_submodules(name))
    return loaded


@contextmanager
def shipped_by_value(modules: Mapping[str, types.ModuleType]) -> Iterator[None]:
    """Have cloudpickle ship these modules' functions and classes by value inside the block."""
    registry = cloudpickle.list_registry_pickle_by_value()
    mine = [module for name, module in modules.items() if name not in registry]
    fals = [sys.modules[name] for name in _SDK if name in registry and name not in modules]
    for module in mine:
        cloudpickle.register_pickle_by_value(module)
    for module in fals:
        cloudpickle.unregister_pickle_by_value(module)
    try:
        yield
    finally:
        for module in mine:
            cloudpickle.unregister_pickle_by_value(module)
        for module in fals:
            cloudpickle.register_pickle_by_value(module)


def missing(
    names: Iterable[str], shipped: Iterable[str], installed: Sequence[Path] = ()
) -> list[str]:
    """Return the top-level modules among `names` that a runner would not find.

    What lies in a folder of `installed` is in its environment.
    """
    known = {name.split(".")[0] for name in shipped} | set(sys.stdlib_module_names)
    tops = {name.split(".")[0] for name in names} - known - {"__main__", "__mp_main__"}
    local = {top: folder for top in sorted(tops) if (folder := _local_file(top)) is not None}
    if not local:
        return []
    found = [*installed, *_editable_folders()]
    return [t for t, file in local.items() if not any(f in file.parents for f in found)]


def _submodules(name: str) -> dict[str, types.ModuleType]:
    return {
        other: module
        for other, module in list(sys.modules.items())
        if other.startswith(name + ".") and isinstance(module, types.ModuleType)
    }


def _local_file(name: str) -> Path | None:
    """Return the module's file if it lies outside of Python's own folders."""
    file = _origin(name)
    if file is None:
        return None
    own = [Path(sysconfig.get_path(key)).resolve() for key in ("stdlib", "platstdlib")]
    inside = any(folder in file.parents for folder in (*own, _OWN_FOLDER))
    return None if inside or _INSTALLED & set(file.parts) else file


def _origin(name: str) -> Path | None:
    module = sys.modules.get(name)
    if module is not None:  # a namespace package has a path only
        origin = getattr(module, "__file__", None) or next(
            iter(getattr(module, "__path__", [])), ""
        )
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        origin = spec.origin if spec is not None and spec.has_location else None
    return Path(origin).resolve() if origin else None


def _editable_folders() -> Iterator[Path]:
    """Yield the folders of editable installs (PEP 610), which a runner finds too."""
    for distribution in importlib.metadata.distributions():
        text = distribution.read_text("direct_url.json")
        source = json.loads(text) if text else {}
        if source.get("dir_info", {}).get("editable"):
            yield Path(unquote(urlsplit(source["url"]).path)).resolve()
