"""`KVStore`: texts by name for all runners of an account, as files in the shared storage."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

from fal_notebook.toolkit.exceptions import KVStoreException
from fal_notebook.toolkit.folders import data_folder

LONGEST_TTL = 30 * 24 * 3600
SHORTEST_TTL = 60


class KVStore:
    """A store of its own name.

    Parameters
    ----------
    db_name : str
        Stores of the same name hold the same.
    """

    def __init__(self, db_name: str) -> None:
        self.db_name = db_name

    def get(self, key: str) -> str | None:
        """Return a value, None where there is none or it has expired."""
        try:
            entry = json.loads(self._file(key).read_text())
        except FileNotFoundError:
            return None
        return str(entry["value"]) if entry["expires"] > time.time() else None

    def set(self, key: str, value: str, ttl: int | None = None) -> None:
        """Store a text for `ttl` seconds, by default 30 days.

        Raises
        ------
        KVStoreException
            When `ttl` is not from 60 to 2592000.
        """
        seconds = LONGEST_TTL if ttl is None else ttl
        if not SHORTEST_TTL <= seconds <= LONGEST_TTL:
            raise KVStoreException(f"ttl={ttl} is not from {SHORTEST_TTL} to {LONGEST_TTL} seconds")
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=file.parent)
        try:
            with open(descriptor, "w") as temporary:
                json.dump({"value": value, "expires": time.time() + seconds}, temporary)
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise

    def delete(self, key: str) -> None:
        """Remove a value, if there is one."""
        self._file(key).unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        folder, name = (hashlib.sha256(text.encode()).hexdigest() for text in (self.db_name, key))
        return data_folder() / ".fal" / "kv" / folder / name
