"""``%%fal_function``, ``%%fal_app`` and ``%%fal_server`` deploy a cell, ``%fal`` steers what runs.

Loading them is quick: what they need is imported when they are first used.
"""

from __future__ import annotations

from typing import Any


def register(shell: Any) -> None:
    """Add the magics and their completion to a shell."""
    from fal_notebook.magics import completion, missing_sdk
    from fal_notebook.magics.cell_magic import NAMES, cell_magic, with_a_body
    from fal_notebook.magics.fal import asked_for_help, line_magic

    unregister(shell)
    for name in NAMES:
        shell.register_magic_function(cell_magic(shell, name), "cell", name)
    shell.register_magic_function(line_magic(shell), "line", "fal")
    shell.input_transformers_cleanup.extend((asked_for_help, with_a_body))
    completion.register(shell)
    missing_sdk.register(shell)


def unregister(shell: Any) -> None:
    """Remove them from a shell."""
    from fal_notebook.magics import completion, missing_sdk
    from fal_notebook.magics.cell_magic import NAMES, with_a_body
    from fal_notebook.magics.fal import asked_for_help

    magics = shell.magics_manager.magics
    magics["line"].pop("fal", None)
    for name in NAMES:
        magics["cell"].pop(name, None)
    transformers = shell.input_transformers_cleanup
    ours = (asked_for_help, with_a_body)
    transformers[:] = [known for known in transformers if known not in ours]
    completion.unregister(shell)
    missing_sdk.unregister(shell)


# The shipped kernel configuration names this module and not the package, so that a notebook
# that says %load_ext fal_notebook all the same is not told that it is loaded already.
load_ipython_extension = register
unload_ipython_extension = unregister
