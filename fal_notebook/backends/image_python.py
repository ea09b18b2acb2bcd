"""Whether an image can run a runner: its Python, machine and C library; what is installed there."""

from __future__ import annotations

import json
from typing import Any

from packaging.utils import canonicalize_name

from fal_notebook.backends.engine_words import misfit
from fal_notebook.exceptions import BuildError

# Prints one line of JSON; it has to run on every Python 3.
_PROGRAM = """
import json, os, platform, sys
try:
    from importlib.metadata import distributions
    # The first of a name is the one that is imported.
    found = {d.metadata["Name"]: d.version for d in reversed(list(distributions()))}
except ImportError:
    found = {}
musl = any(name.startswith("ld-musl") for name in os.listdir("/lib"))
print(json.dumps({
    "python": "{}.{}".format(*sys.version_info), "found": found, "musl": musl,
    "implementation": sys.implementation.name, "machine": platform.machine(),
}))
"""
COMMAND = ["python3", "-c", _PROGRAM]
_SERVER = "a server needs none: give it exposed_port in %%fal_server"
_ABSENT = "executable file not found"


def versions(status: int, printed: str, minor: str, image: str, engine: str) -> dict[str, str]:
    """Return the versions of an image's distributions; refuse one in which a runner cannot run.

    Parameters
    ----------
    status, printed : int, str
        How `COMMAND` ended in the image, and what it printed or why it could not be run.
    minor : str
        The Python minor of the payload.
    image, engine : str
        The architecture of the image and that of the engine, as the engine names them.

    Raises
    ------
    BuildError
        One sentence that says what to write.
    """
    wrong = misfit(image, engine, printed) if status else ""
    if why := wrong or _why_not(status, printed, minor):
        raise BuildError(why, printed.splitlines()[-5:] if status else [])
    found = _told(printed)["found"]
    return {canonicalize_name(name): version for name, version in found.items() if name}


def _why_not(status: int, printed: str, minor: str) -> str:
    base = f"write FROM python:{minor}-slim"
    if status and _ABSENT in printed:
        return f"the image has no python3, which runs the function: {base} or install it; {_SERVER}"
    try:
        found = _told(printed)
    except (ValueError, IndexError):
        return f"python3 of the image does not run, it ended with exit status {status}: {base}"
    return _unfit(found, minor, base)


def _told(printed: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
    return found


def _unfit(found: dict[str, Any], minor: str, base: str) -> str:
    if found["python"] != minor:
        return (
            f"the image has Python {found['python']} and this kernel {minor}, and code captured "
            f"here runs on the same minor version only: {base}, or use a kernel of "
            f"{found['python']}"
        )
    if found["implementation"] != "cpython":
        return f"the image has {found['implementation']}, and the runner needs CPython: {base}"
    if found["musl"]:
        return f"the image has Alpine's C library (musl), and the runner needs glibc: {base}"
    return ""
