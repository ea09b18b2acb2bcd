"""The files that an image's Dockerfile copies, as an archive; what is left out of it."""

from __future__ import annotations

from fal_notebook.container import ContainerImage


def pack(image: ContainerImage, folder: str) -> bytes:
    """Return a tar archive of the build context; empty when the Dockerfile copies no files.

    Parameters
    ----------
    folder : str
        Where a relative `context_dir` begins, and which is the context when none is given.
    """
    return b""
