"""What is said of a payload before it is sent: its size, and code that a runner fails in."""

from __future__ import annotations

import heapq
import io
import types
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any

from fal_notebook import cell
from fal_notebook.local_requirements import folders
from fal_notebook.payload import local_modules
from fal_notebook.payload.items import Item
from fal_notebook.payload.references import Reference, is_by_value, named_references
from fal_notebook.payload.sources import source_of

LARGE = 10 * 1000 * 1000


def warnings_of(
    size: int,
    items: list[Item],
    modules: Mapping[str, Any],
    identity: Mapping[str, Any],
    allowed: Iterable[str],
) -> tuple[str, ...]:
    """Return one sentence each; the arguments are those of `capture` and what it found."""
    return (
        *_size_warning(size, items),
        *_code_warnings(items, modules, identity),
        *_file_warnings(items),
        *_unknown_names(items, allowed, identity.get("options", ())),
    )


def largest(items: list[Item]) -> str:
    """Name the three largest values, with their sizes."""
    sized = [item for item in items if item.how != "signature" and item.size > LARGE / 1000]
    found = heapq.nlargest(3, sized, key=lambda item: item.size)
    return ", ".join(f"`{item.name}` ({megabytes(item.size)})" for item in found)


def megabytes(size: int) -> str:
    """Return a size in bytes as people read it."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _size_warning(size: int, items: list[Item]) -> list[str]:
    if size <= LARGE:
        return []
    return [
        f"the payload of `{items[0].name}` is {megabytes(size)}; "
        f"the largest values are {largest(items)}"
    ]


def _code_warnings(
    items: list[Item], modules: Mapping[str, Any], identity: Mapping[str, Any]
) -> list[str]:
    options, files = identity.get("options", {}), identity.get("files", ())
    found: dict[str, None] = {}
    for item in items:
        if isinstance(item.value, types.FunctionType) and is_by_value(item.value):
            source = source_of(item.value) or ""
            used = {r.name: r.value for r in named_references(item.value) if _is_told(r)}
            line = item.value.__code__.co_firstlineno
            found |= dict.fromkeys(cell.warnings(source, line, used, files))
    used_modules = {m for item in items for m in item.modules}
    installed = [folder.resolve() for folder in folders(options.get("requirements"))]
    unless = ", unless the image brings it" if options.get("image") else ""
    brought = {*modules, *(file.split("/")[0].removesuffix(".py") for file in files)}
    for name in local_modules.missing(used_modules, brought, installed):
        user = next(i for i in items if name in {m.split(".")[0] for m in i.modules})
        owner = user if user.owner is None or user.kind == "function" else user.owner
        found[
            f"`{owner.name}` uses the module `{name}`, which lies beside the notebook where no "
            f"runner finds it{unless}; add local_python_modules={name}"
        ] = None
    return list(found)


def _is_told(reference: Reference) -> bool:
    """Whether warnings need the value: of what is no global, only paths."""
    return reference.how == "global" or isinstance(reference.value, (str, PurePath))


def _file_warnings(items: list[Item]) -> list[str]:
    return [
        f"{item.sentence()}, {'an' if isinstance(item.value, io.IOBase) else 'which holds an'} "
        "open file, and a runner gets a copy of its text as it is now; "
        "open it in setup_function or inside the function"
        for item in items
        if item.holds_file
    ]


def _unknown_names(
    items: list[Item], allowed: Iterable[str], options: Iterable[str]
) -> Iterator[str]:
    """Say which of the names in allow_secret are those of no captured value and no option."""
    known = list(dict.fromkeys(item.name for item in items))
    for name in allowed:
        if name not in known and name not in options:
            nearest = get_close_matches(name, known, n=1)
            meant = f"; did you mean `{nearest[0]}`?" if nearest else ""
            yield f"allow_secret names `{name}`, which is not captured{meant}"
