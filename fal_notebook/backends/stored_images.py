"""The images that an engine has of ours: shown, sent to registries, removed when nobody needs them.

Names of images say what is in them, so state folders share them. Each folder leaves a mark on what
it uses: a further name, with its own label in it. What carries no mark but one's own is one's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fal_notebook.backends.engine import Engine
from fal_notebook.backends.logins import Given, login
from fal_notebook.backends.pulls import Call, Progress, breakable
from fal_notebook.exceptions import BuildError, ConflictError
from fal_notebook.image import LABEL, OURS, is_ours
from fal_notebook.registries import Reference

# What no name leads to may belong to a build of another gateway for so long (seconds).
NAMELESS_KEPT = 24 * 3600.0

_MARKS = f"{OURS}of-"


def mark_of(label: str, name: str) -> str:
    """Return the mark of a state folder on an image of ours, ``fal-notebook/KIND:HASH``."""
    return f"{_MARKS}{label}:{name.removeprefix(OURS).replace(':', '-')}"


def _marked(mark: str) -> str:
    kind, _, key = mark.rpartition(":")[2].partition("-")
    return f"{OURS}{kind}:{key}"


@dataclass(frozen=True)
class Stored:
    """An image as an engine has it."""

    id: str
    parent: str
    names: tuple[str, ...]
    layers: tuple[str, ...]
    size: int
    created: float
    kind: str

    @classmethod
    def of(cls, listed: Mapping[str, Any], about: Mapping[str, Any]) -> Stored:
        """Take what the engine says in its list and of the image alone."""
        names = [name for name in listed["RepoTags"] or () if name != "<none>:<none>"]
        layers = tuple(about["RootFS"].get("Layers") or ())
        kind = (listed["Labels"] or {}).get(LABEL, "")
        found = listed["Id"], about.get("Parent", ""), tuple(names), layers
        return cls(*found, listed["Size"], float(listed["Created"]), kind)


@dataclass(frozen=True)
class Removal:
    """What a clearing removes: names that go, images that go with their last one, bytes."""

    names: tuple[str, ...]
    images: tuple[Stored, ...]
    size: int

    @property
    def told(self) -> list[str]:
        """What people are told: the images' own names, or ids of those without; no marks."""
        named = [name for name in self.names if not name.startswith(_MARKS)]
        return named + [image.id[7:19] for image in self.images if not image.names]


def removal(
    images: Collection[Stored], label: str, needed: Collection[str], used: Collection[str]
) -> Removal:
    """Decide what of ours may go.

    Parameters
    ----------
    label : str
        Of the state folder.
    needed : collection of str
        Names or ids of images that its revisions need; those they are made from are needed too.
    used : collection of str
        Ids of images that any container uses; they stay, with those that they name as parents.
    """
    kept = _made_from(images, [i for i in images if _any(i, needed)])
    kept |= _with_parents(images, [i for i in images if i.id in used])
    unneeded = [image for image in images if image.id not in kept]
    names = {image.id: _names_to_remove(image, label) for image in unneeded}
    gone = [image for image in unneeded if names[image.id] and set(image.names) <= names[image.id]]
    old = time.time() - NAMELESS_KEPT
    gone += [i for i in unneeded if i.kind and not i.names and i.created < old]
    ordered = sorted(name for some in names.values() for name in some)
    return Removal(tuple(ordered), tuple(gone), freed(images, gone))


def _any(image: Stored, needed: Collection[str]) -> bool:
    return image.id in needed or any(name in needed for name in image.names)


def _with_parents(images: Iterable[Stored], kept: Iterable[Stored]) -> set[str]:
    known = {image.id: image for image in images}
    found = set[str]()
    for image in kept:
        above: Stored | None = image
        while above is not None and above.id not in found:
            found.add(above.id)
            above = known.get(above.parent)
    return found


def _made_from(images: Iterable[Stored], kept: Iterable[Stored]) -> set[str]:
    """Return parents by their layers too: BuildKit names none."""
    known = {image.id: image for image in images}
    found = _with_parents(images, kept)
    layers = [known[i].layers for i in found]
    return found | {i.id for i in known.values() if any(_below(i.layers, own) for own in layers)}


def _below(layers: tuple[str, ...], own: tuple[str, ...]) -> bool:
    return bool(layers) and own[: len(layers)] == layers


def _names_to_remove(image: Stored, label: str) -> set[str]:
    """Return our mark on an image, and its own name if no other state folder has a mark on it."""
    marks = {name for name in image.names if name.startswith(_MARKS)}
    mine = {mark for mark in marks if mark.startswith(f"{_MARKS}{label}:")}
    others = {_marked(mark) for mark in marks - mine}
    return mine | {_marked(mark) for mark in mine if _marked(mark) in image.names} - others


def freed(images: Iterable[Stored], gone: Collection[Stored]) -> int:
    """Return the bytes that images had for themselves: without those of the ones they are made of.

    What several that go have in common counts once where it is an image too.
    """
    every = list(images)
    return sum(image.size - _inherited(every, image) for image in gone)


def _inherited(images: Iterable[Stored], image: Stored) -> int:
    below = [i.size for i in images if i.id != image.id and _below(i.layers, image.layers)]
    return min(max(below, default=0), image.size)


class StoredImages:
    """What commands do with images; `label` is that of the state folder."""

    def __init__(self, engine: Engine, call: Call, label: str) -> None:
        self._engine = engine
        self._call = call
        self._label = label
        self._clearing = asyncio.Lock()
        self._builds = 0

    @contextlib.asynccontextmanager
    async def building(self) -> AsyncIterator[None]:
        """Be within it while images are built: nobody needs them yet, but none is removed."""
        async with self._clearing:
            self._builds += 1
        try:
            yield
        finally:
            self._builds -= 1

    async def about(self, name: str) -> dict[str, Any]:
        """Return id, digest, size, labels and layers of an image.

        Raises
        ------
        BuildError
            When the engine does not have it any more.
        """
        found, layers = await self._call(self._look, name)
        digests = found.get("RepoDigests") or ()
        return {
            "image": name,
            "id": found["Id"],
            "digest": digests[0].partition("@")[2] if digests else "",
            "size": found["Size"],
            "platform": f"{found['Os']}/{found['Architecture']}",
            "labels": found["Config"].get("Labels") or {},
            "layers": layers,
        }

    def _look(self, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        found = self._engine.image(name)
        if found is None:
            raise BuildError(
                f"the image {name} was removed from the engine; deploy the app again, with "
                "force=true"
            )
        layers = [
            {"size": layer["Size"], "command": layer["CreatedBy"]}
            for layer in reversed(self._engine.history(name))
        ]
        return found, layers

    async def push(
        self, image: str, to: str, given: Given, progress: Progress, source: str = ""
    ) -> str:
        """Send an image to a registry and return its digest there; `source`: see `login`.

        Raises
        ------
        RegistryError
            With the registry's reason, and where credentials go.
        """
        known = await login(Reference.of(to).host, given, source)
        digest: str = await breakable(self._call, self._engine.push, image, to, progress, known)
        return digest

    async def clear(self, needed: Collection[str], dry: bool) -> Removal:
        """Remove the images of this state folder that nothing needs; `dry` only says which.

        Raises
        ------
        ConflictError
            While images are built.
        """
        async with self._clearing:
            if self._builds:
                raise ConflictError("an image is being built; try again when its deploy has ended")
            found: Removal = await self._call(self._clear, needed, dry)
            return found

    def _clear(self, needed: Collection[str], dry: bool) -> Removal:
        for name in filter(is_ours, needed):
            self._engine.name_image(name, mark_of(self._label, name))
        images = [
            Stored.of(listed, about)
            for listed in self._engine.images()
            if (about := self._engine.image(listed["Id"])) is not None
        ]
        used = {item["ImageID"] for item in self._engine.containers({})}
        found = removal(images, self._label, needed, used)
        if dry:
            return found
        removed = [n for n in found.names if self._engine.unname_image(n)]
        for image in found.images:
            if not image.names:
                self._engine.unname_image(image.id)
        return Removal(tuple(removed), found.images, found.size)
