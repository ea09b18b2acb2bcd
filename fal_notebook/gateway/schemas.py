"""The databases of a state folder, examined together before any of them is opened."""

from __future__ import annotations

from pathlib import Path

from fal_notebook.gateway import database, store
from fal_notebook.gateway.queue import records
from fal_notebook.gateway.storage import table

_KNOWN = {
    "store.db": store.MIGRATIONS,
    "queue.db": records.MIGRATIONS,
    "storage.db": table.MIGRATIONS,
}


def examine(state: Path) -> None:
    """Refuse a state folder of which one database is newer or damaged, before any is changed.

    Raises
    ------
    StoreError
        When there is one; all stay as they are.
    """
    for name, migrations in _KNOWN.items():
        database.examine(state / name, len(migrations))
