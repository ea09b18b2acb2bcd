"""Whether an image of the user's own can run a runner: its Python, machine and C library."""

from __future__ import annotations

import json
import platform

from fal_notebook.exceptions import BuildError

# Prints one line of JSON; it has to run on every Python 3.
_PROGRAM = """
import json, os, platform, sys
try:
    from importlib.metadata import version
    pydantic = version("pydantic")
except Exception:
    pydantic = ""
musl = any(name.startswith("ld-musl") for name in os.listdir("/lib"))
print(json.dumps({
    "python": "{}.{}".format(*sys.version_info), "pydantic": pydantic, "musl": musl,
    "implementation": sys.implementation.name, "machine": platform.machine(),
}))
"""
COMMAND = ["python3", "-c", _PROGRAM]
_SERVER = "a server needs none: give it exposed_port in %%fal_server"
_ABSENT = ("executable file not found", "no such file or directory")
_FOREIGN = "exec format error"


def refuse(status: int, printed: str, minor: str, architecture: str) -> None:
    """Refuse an image in which a runner cannot run.

    Parameters
    ----------
    status, printed : int, str
        How `COMMAND` ended in the image, and what it printed or why it could not be run.
    minor : str
        The Python minor of the payload.
    architecture : str
        That of the image, as the engine names it.

    Raises
    ------
    BuildError
        One sentence that says what to write.
    """
    if why := _why_not(status, printed, minor, architecture):
        raise BuildError(why, printed.splitlines()[-5:] if status else [])


def _why_not(status: int, printed: str, minor: str, architecture: str) -> str:
    base = f"write FROM python:{minor}-slim"
    if _FOREIGN in printed.lower():
        return (
            f"the image is made for another machine ({architecture}), this one is "
            f"{platform.machine()}: build it for this one, or leave out --platform"
        )
    if status and any(word in printed.lower() for word in _ABSENT):
        return f"the image has no python3, which runs the function: {base} or install it; {_SERVER}"
    try:
        found = json.loads(printed.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return f"python3 of the image does not run, it ended with exit status {status}: {base}"
    return _unfit(found, minor, base)


def _unfit(found: dict[str, str], minor: str, base: str) -> str:
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
    if found["pydantic"].startswith(("0.", "1.")):
        return f"the image brings pydantic {found['pydantic']}, and the runner needs pydantic ≥ 2"
    return ""
