"""``%%fal_function``, ``%%fal_app`` and ``%%fal_server`` deploy a cell, ``%fal`` steers what runs.

Loading them is quick: what they need is imported when they are first used.
"""

from __future__ import annotations

from typing import Any

_NAMES = (("cell", "fal_function"), ("cell", "fal_app"), ("cell", "fal_server"), ("line", "fal"))


def register(shell: Any) -> None:
    """Add the magics and their completion to a shell."""
    from fal_notebook.magics import completion
    from fal_notebook.magics.cell_magic import app_magic, function_magic, server_magic
    from fal_notebook.magics.fal import asked_for_help, line_magic

    unregister(shell)
    shell.register_magic_function(function_magic(shell), "cell", "fal_function")
    shell.register_magic_function(app_magic(shell), "cell", "fal_app")
    shell.register_magic_function(server_magic(shell), "cell", "fal_server")
    shell.register_magic_function(line_magic(shell), "line", "fal")
    shell.input_transformers_cleanup.append(asked_for_help)
    completion.register(shell)


def unregister(shell: Any) -> None:
    """Remove them from a shell."""
    from fal_notebook.magics import completion
    from fal_notebook.magics.fal import asked_for_help

    for kind, name in _NAMES:
        shell.magics_manager.magics[kind].pop(name, None)
    transformers = shell.input_transformers_cleanup
    transformers[:] = [known for known in transformers if known is not asked_for_help]
    completion.unregister(shell)


# The shipped kernel configuration names this module and not the package, so that a notebook
# that says %load_ext fal_notebook all the same is not told that it is loaded already.
load_ipython_extension = register
unload_ipython_extension = unregister
