"""The databases of a state folder, examined together before any of them is opened."""

from __future__ import annotations

from pathlib import Path

from fal_notebook.gateway import database, store
from fal_notebook.gateway.queue import records
from fal_notebook.gateway.storage import table

KNOWN = {
    "store.db": store.MIGRATIONS,
    "queue.db": records.MIGRATIONS,
    "storage.db": table.MIGRATIONS,
}
"""Each database's schema, in the order in which a gateway makes them."""


def examine(state: Path) -> None:
    """Refuse a state folder of which one database is newer or damaged, before any is changed.

    Raises
    ------
    StoreError
        When there is one; all stay as they are.
    """
    for name, migrations in KNOWN.items():
        database.examine(state / name, len(migrations))
    _refuse_emptied([state / name for name in KNOWN])


def _refuse_emptied(made: list[Path]) -> None:
    """Refuse an empty file before one with content: a first start that was cut off leaves none."""
    for number, path in enumerate(made):
        later = [other for other in made[number + 1 :] if database.size(other)]
        if later and path.exists() and not database.size(path):
            raise database.damaged(path, f"it is empty, though {later[0].name}, made later, is not")
