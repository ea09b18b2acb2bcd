"""The files that an app takes along, in its runner's working folder."""

from __future__ import annotations

import os
import sys
import tarfile


def unpack(archive: str) -> None:
    """Copy the files of an archive into the working folder, whose modules can be imported then.

    Does nothing without an archive (empty).
    """
    if not archive:
        return
    with tarfile.open(archive) as files:
        # Early releases of 3.10 and 3.11 have no filter; the gateway took only a client's files.
        files.extraction_filter = getattr(tarfile, "data_filter", lambda entry, path: entry)
        files.extractall(".")
    sys.path.insert(0, os.getcwd())
