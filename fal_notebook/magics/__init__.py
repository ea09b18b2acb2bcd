"""The magics: ``%%fal_function`` deploys a cell, ``%fal`` sees and steers what runs."""

from __future__ import annotations

from typing import Any

from fal_notebook.magics.fal import fal
from fal_notebook.magics.function import FunctionMagic

_NAMES = (("cell", "fal_function"), ("line", "fal"))


def register(shell: Any) -> None:
    """Add the magics to a shell."""
    shell.register_magic_function(FunctionMagic(shell).cell, "cell", "fal_function")
    shell.register_magic_function(fal, "line", "fal")


def unregister(shell: Any) -> None:
    """Remove the magics from a shell."""
    for kind, name in _NAMES:
        shell.magics_manager.magics[kind].pop(name, None)
