"""The zip that ships to every runner: the package without what only kernel and gateway use."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

import fal_notebook
from fal_notebook.exceptions import BuildError

# Named, not excluded: what is new stays out until a runner needs it.
_SHIPPED = (
    "__init__.py",
    "addresses.py",
    "annotations.py",
    "app.py",
    "app_definition.py",
    "app_exceptions.py",
    "app_handle.py",
    "app_values.py",
    "calls.py",
    "client.py",
    "client_errors.py",
    "container.py",
    "decorators.py",
    "discovery.py",
    "endpoints.py",
    "envs.py",
    "exceptions.py",
    "following.py",
    "handle.py",
    "log_lines.py",
    "machines.py",
    "media_types.py",
    "option*.py",
    "patience.py",
    "private_file.py",
    "queued.py",
    "realtime_endpoint.py",
    "ref.py",
    "request_context.py",
    "settings.py",
    "state_lock.py",
    "submitted.py",
    "submitting.py",
    "sync.py",
    "sdk.py",
    "sdk_app.py",
    "sdk_handle.py",
    "server_handle.py",
    "runner/*.py",
    "toolkit/*.py",
    "toolkit/*/*.py",
)
_MAIN = "from fal_notebook.runner.__main__ import main\nimport sys\nmain(sys.argv[1:])\n"


def bundle() -> bytes:
    """Return the zip; the same sources give the same bytes."""
    root = Path(fal_notebook.__file__).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py"), _MAIN)
        for path in sorted(p for pattern in _SHIPPED for p in root.glob(pattern)):
            name = f"fal_notebook/{path.relative_to(root).as_posix()}"
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
    return buffer.getvalue()


def write_bundle(state: Path) -> Path:
    """Write the zip into the state folder under its hash, once, and return its path."""
    content = bundle()
    path = state / f"runner-{hashlib.sha256(content).hexdigest()[:16]}.zip"
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(content)
        temporary.replace(path)
    return path


def write_compiled(state: Path, interpreter: str, minor: str) -> Path:
    """Write what ships as a folder, compiled by an interpreter, once, and return its path.

    A container starts it anew each time, with nobody to compile it before.

    Raises
    ------
    BuildError
        When the interpreter cannot be run.
    """
    bundled = write_bundle(state)
    folder = bundled.with_name(f"{bundled.stem}-{minor}")
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(dir=state) as draft, zipfile.ZipFile(bundled) as archive:
        archive.extractall(draft)
        command = [interpreter, "-I", "-m", "compileall", "-q"]
        command += ["--invalidation-mode", "unchecked-hash", draft]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise BuildError(f"{interpreter} cannot be used: {error}") from error
        with contextlib.suppress(FileExistsError):  # another deploy was faster
            shutil.copytree(draft, folder)
    return folder
