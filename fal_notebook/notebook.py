"""Which notebook or program deploys, so that two do not overwrite each other's app."""

from __future__ import annotations

import os
import sys

# A later %cd must not make it another one.
_FOLDER = os.getcwd()


def folder() -> str:
    """Return the folder of the notebook, or the one in which the process began."""
    path = os.environ.get("JPY_SESSION_NAME", "")
    home = os.path.dirname(path)
    return home if os.path.isabs(path) and os.path.isdir(home) else _FOLDER


def identity() -> str:
    """Return the notebook's path as Jupyter or VS Code tell it, else the folder it began in."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    path = os.environ.get("JPY_SESSION_NAME")
    if not path and shell is not None:
        path = shell.user_ns.get("__vsc_ipynb_file__")
    if path:
        return f"notebook {path}"
    return f"a {'program' if shell is None else 'session'} in {_FOLDER}"
