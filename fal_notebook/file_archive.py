"""Files of this machine as a tar archive of known size; which ones is left to others."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path

# The gateway takes a little more than this.
MAX_ARCHIVE = 256 * 1000 * 1000
# Archives of equal files are equal; zip files, which wheels are, know no time before 1980.
_TIME = 499_162_500


def too_large(files: Mapping[str, Path]) -> str:
    """Return how far files are above the limit, and which are the largest; empty if they are not.

    Parameters
    ----------
    files : mapping of str to Path
        Each file, folder or link by its name in the archive.
    """
    found = {name: path.lstat() for name, path in files.items()}
    sizes = {name: s.st_size for name, s in found.items() if stat.S_ISREG(s.st_mode)}
    total = sum(sizes.values()) + 1024 * len(files)
    if total <= MAX_ARCHIVE:
        return ""
    largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
    named = ", ".join(f"{name} ({sizes[name] / 1e6:.0f} MB)" for name in largest)
    limit = f"{total / 1e6:.0f} MB, above {MAX_ARCHIVE // 10**6} MB"
    return f"{limit}; the largest of {len(sizes)} files are {named}"


def archive(files: Mapping[str, Path]) -> bytes:
    """Return a tar archive; equal files give equal bytes on every machine.

    Raises
    ------
    OSError
        When one cannot be read.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as packed:
        for name, path in files.items():
            entry = packed.gettarinfo(path, name)
            if entry is None or not (entry.isreg() or entry.isdir() or entry.issym()):
                if entry is None or not entry.islnk():
                    continue  # a socket, a pipe
                entry.type, entry.size = tarfile.REGTYPE, path.stat().st_size
            _make_equal(entry)
            if entry.isreg():
                with path.open("rb") as file:
                    packed.addfile(entry, file)
            else:
                packed.addfile(entry)
    return buffer.getvalue()


def _make_equal(entry: tarfile.TarInfo) -> None:
    """Leave of a file what is the same on every machine."""
    entry.mtime = _TIME
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
