"""The payload file: a magic line, a JSON manifest line, then the cloudpickle bytes.

The manifest stands in front in plain JSON so that a runner can check the Python version *before*
it unpickles: cloudpickle bytes of another minor version can kill the interpreter with SIGSEGV.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fal_notebook.exceptions import PayloadFormatError

MAGIC = b"fal-notebook-payload 1\n"


def pack(manifest: dict[str, Any], pickled: bytes) -> bytes:
    """Return the bytes of a payload file; `manifest` must be JSON and hold ``python: "3.11"``."""
    line = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    return MAGIC + line + b"\n" + pickled


@contextmanager
def packages_compared(manifest: dict[str, Any]) -> Iterator[None]:
    """Say, when loading fails inside the block, which packages have another version here.

    Raises
    ------
    PayloadFormatError
        Caused by the error, when some do.
    """
    try:
        yield
    except Exception as error:
        other = [
            f"{name} {version}, here is {here}"
            for name, version in manifest.get("packages", {}).items()
            if (here := _version(name)) != version
        ]
        if not other:
            raise
        raise PayloadFormatError(
            f"the payload cannot be loaded ({type(error).__name__}: {error}); it was made with "
            f"{', and with '.join(other)}"
        ) from error


def _version(name: str) -> str:
    try:
        return str(getattr(importlib.import_module(name), "__version__", "unknown"))
    except Exception:  # a broken package may raise anything
        return "none"


def unpack(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Split a payload file into manifest and pickle bytes, without unpickling anything.

    Raises
    ------
    PayloadFormatError
        When the bytes are no payload, or it was made by another Python minor version.
    """
    if not content.startswith(MAGIC):
        raise PayloadFormatError("this file is not a fal_notebook payload; deploy the cell again")
    end = content.find(b"\n", len(MAGIC))
    manifest: dict[str, Any] = json.loads(content[len(MAGIC) : end])
    here = "{}.{}".format(*sys.version_info)
    if manifest["python"] != here:
        raise PayloadFormatError(
            f"the payload was made by Python {manifest['python']} and cannot be loaded by "
            f"Python {here}; deploy it from a kernel of the runner's version"
        )
    return manifest, memoryview(content)[end + 1 :]
