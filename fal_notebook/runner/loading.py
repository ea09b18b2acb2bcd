"""A payload file becomes what a runner serves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fal_notebook.runner import unpickling
from fal_notebook.runner.app_class import ServedApp
from fal_notebook.runner.envelope import packages_compared, unpack
from fal_notebook.runner.function import ServedFunction
from fal_notebook.runner.reports import Reports
from fal_notebook.runner.served import Served
from fal_notebook.runner.unloadable import load_error
from fal_notebook.runner.workers import Workers


def load(payload: str, max_multiplexing: int) -> Served:
    """Load a payload file; its setup is still to be run.

    Raises
    ------
    PayloadFormatError
        When it is none, was made by another Python or by packages of other versions, or holds a
        value that cannot be loaded.
    """
    content = Path(payload).read_bytes()
    manifest, pickled = unpack(content)
    with packages_compared(manifest):
        loaded = _unpickled(content, len(content) - len(pickled))
    for name, module in loaded["modules"].items():
        sys.modules.setdefault(name, module)
    kind = ServedApp if manifest.get("kind") == "app" else ServedFunction
    reports = Reports(manifest.get("sources", {}))
    return kind(loaded, manifest, reports, Workers(max_multiplexing))


def _unpickled(content: bytes, begin: int) -> Any:
    try:
        return unpickling.load(content, begin)
    except ImportError:
        raise
    except Exception as error:
        if (named := load_error(error, content, begin)) is None:
            raise
        raise named from error
