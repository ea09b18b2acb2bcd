"""What the runner imports besides the user's own packages, made by uv for each Python minor.

One folder serves all whose own versions go with it. For others it is made again, beside those
versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from packaging.requirements import Requirement

from fal_notebook.backends import fit
from fal_notebook.backends.environments import hashed, implementation, install
from fal_notebook.backends.generations import Place, ensure_built
from fal_notebook.backends.uv_process import Progress
from fal_notebook.exceptions import BuildError

RUNNER_LIBRARIES = (
    "cloudpickle>=3.0",
    "filelock>=3.8",
    "httpcore>=0.15",  # one httpx asks for any
    "httptools>=0.5",
    "httpx>=0.24",
    "msgpack>=1.0",
    "packaging>=21",
    "platformdirs>=3",
    "psutil>=5.8",
    "pydantic>=2.6",
    "starlette>=0.27",
    "tomli>=2; python_version < '3.11'",
    "typing-extensions>=4.6.1,!=4.7.0",  # pydantic asks for it
    "uvicorn>=0.22",
    "uvloop>=0.17; sys_platform != 'win32'",
    "websockets>=11",
)
"""What the runner imports besides the user's own packages; they bring what they need.

As old as those that a runner was seen to work with: an environment's own versions win.
"""
BRING = "requirements bring"
UNSOLVABLE = "No solution found"
"""How uv begins to say that no versions go together."""


def refuse(found: Mapping[str, str], python_minor: str, brings: str = BRING) -> None:
    """Refuse what the runner itself cannot use.

    Parameters
    ----------
    found : mapping
        Versions of the user's own distributions, by canonical name.
    python_minor : str
        Such as "3.11".
    brings : str
        Who has those, for messages.

    Raises
    ------
    BuildError
        One sentence with the distribution, its version and what the runner needs.
    """
    if wrong := fit.unmet(fit.applying(RUNNER_LIBRARIES, python_minor), found):
        raise BuildError(fit.refusal(wrong, found, brings))


async def ensure_runner_libraries(
    root: Path,
    interpreter: str,
    python_minor: str,
    progress: Progress,
    found: Mapping[str, str] | None = None,
    brings: str = BRING,
) -> Path:
    """Return the folder with the runner's own dependencies for one Python minor.

    Parameters
    ----------
    root : Path
        The state folder.
    interpreter : str
        A Python executable of that minor.
    python_minor : str
        Such as "3.11".
    progress : callable
        As for `environments.ensure`.
    found : mapping, optional
        Versions of the user's own distributions, by canonical name; the libraries go with them.
    brings : str
        Who has those, for messages.

    Returns
    -------
    Path
        Belongs at the end of ``sys.path``, so that the user's own pins win.

    Raises
    ------
    BuildError
        With uv's reason, or with what of `found` the runner cannot use.
    """
    found, beside = found or {}, dict[str, str]()
    refuse(found, python_minor, brings)
    wrong: list[Requirement] = []
    while True:  # each turn goes with more of what is found
        try:
            folder = await _ensure(root, interpreter, python_minor, progress, beside)
        except BuildError as error:
            if beside and UNSOLVABLE in str(error):
                raise BuildError(fit.refusal(wrong, found, brings)) from error
            raise
        wrong = fit.misfits(fit.needs_of(folder, python_minor), found)
        more = {name: found[name] for name in map(fit.name_of, wrong)}
        if more.keys() <= beside.keys():
            return folder
        beside |= more


async def _ensure(
    root: Path,
    interpreter: str,
    python_minor: str,
    progress: Progress,
    beside: Mapping[str, str],
) -> Path:
    """Return the folder of libraries that go with some versions."""
    wanted = [*RUNNER_LIBRARIES, *(f"{name}=={beside[name]}" for name in sorted(beside))]

    async def build(folder: Path) -> None:
        arguments = ["--python", interpreter, "--target", str(folder), "--compile-bytecode"]
        arguments += ["--prerelease", "explicit"]  # else uv takes one where no release fits
        await install(folder, 1, wanted, arguments, progress)

    name = f"{python_minor}-{hashed(implementation(interpreter), wanted)[:8]}"
    record = {"interpreter": interpreter, "requirements": wanted}
    place = Place(root / "libraries" / name, "pydantic/__init__.py", record)
    return await ensure_built(place, build, progress, force=False)
