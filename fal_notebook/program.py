"""Deploy a function of a Python file, as its cell in a notebook would be deployed."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fal_notebook import deploying
from fal_notebook.cell import analyse
from fal_notebook.exceptions import CellError, OptionError
from fal_notebook.options import split_options


def deploy_file(target: str, values: Mapping[str, Any]) -> deploying.Deployment:
    """Run ``FILE[::FUNCTION]`` and deploy its function, by default the last one.

    The file runs as ``__main__`` of this process, so that it is captured by value like a cell.

    Raises
    ------
    CellError
        When there is no such file or function; what the file raises leaves as it is.
    """
    name, _, wanted = target.partition("::")
    path = Path(name)
    options, cell = split_options(values)
    if cell.entry is not None or cell.dry_run:
        raise OptionError("give the function as FILE::FUNCTION; dry_run is for cells")
    try:
        source = path.read_text()
    except (OSError, ValueError) as error:
        raise CellError(f"{name} cannot be read: {error}") from None
    entry = analyse(source, wanted or None).entry
    namespace = _run(source, path)
    if not callable(namespace.get(entry)):
        raise CellError(f"`{entry}` is not a function when {name} has run")
    return deploying.start(namespace[entry], options, cell, entry)


def _run(source: str, path: Path) -> dict[str, Any]:
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    sys.modules["__main__"] = module
    sys.path.insert(0, str(path.resolve().parent))
    exec(compile(source, str(path.resolve()), "exec"), vars(module))
    return vars(module)
