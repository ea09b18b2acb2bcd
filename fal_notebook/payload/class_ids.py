"""One identity for a class of the notebook, in every process that has its definition.

cloudpickle tells classes apart by a random number of each process. After a restart of the kernel,
a deployed function would take the very same enum for another one, and ``is`` would silently fail.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from cloudpickle import cloudpickle

from fal_notebook.payload.digest import definition_digest
from fal_notebook.payload.references import is_class

_PREFIX = "fal_notebook:"


def track() -> None:
    """Give the classes that ``__main__`` defines their identity; the newest definition has it.

    Of those that a function makes there may be several alike, so they keep a random one.
    """
    by_class, by_id = (
        cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS,
        cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID,
    )
    for cls in _classes(vars(sys.modules["__main__"])):
        known = by_class.get(cls, "")
        identity = known if known.startswith(_PREFIX) else _PREFIX + definition_digest(cls)
        if by_id.get(identity) is not cls:
            with cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK:
                by_class[cls], by_id[identity] = identity, cls


def _classes(namespace: Mapping[str, Any], path: str = "") -> Iterator[Any]:
    """Yield the classes that stand under the name that they were defined by, inner ones too."""
    for name, value in list(namespace.items()):
        if is_class(value) and (value.__module__, value.__qualname__) == ("__main__", path + name):
            yield value
            yield from _classes(vars(value), f"{path}{name}.")
