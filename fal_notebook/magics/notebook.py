"""Which notebook a kernel belongs to, so that two do not overwrite each other's app."""

from __future__ import annotations

import os
from typing import Any


def identity(shell: Any) -> str:
    """Return the notebook's path as Jupyter or VS Code tell it, else the kernel's folder."""
    path = os.environ.get("JPY_SESSION_NAME") or shell.user_ns.get("__vsc_ipynb_file__")
    return f"notebook {path}" if path else f"a session in {os.getcwd()}"
