"""What is installed for an app, layer by layer; a pure function of its options and manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name


def layers_of(options: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[list[str]]:
    """Return the layers that were asked for, or else what the code imports.

    What the runner needs besides (``manifest["added"]``) is resolved together with all that the
    user names, in the last layer: else it would replace the versions of earlier ones.
    """
    given = options.get("requirements")
    layers = manifest.get("distributions") if given is None else given
    layers = layers or []
    if layers and isinstance(layers[0], str):
        layers = [layers]
    layers = [list(layer) for layer in layers if layer]
    if added := manifest.get("added"):
        *before, last = layers or [[]]
        again = [line for layer in before for line in layer if _may_be_repeated(line)]
        named = {_name(line) for layer in layers for line in layer}
        return [*before, [*again, *last, *(line for line in added if _name(line) not in named)]]
    return layers


def _may_be_repeated(line: str) -> bool:
    """Say whether that leaves what is installed as it is: folders and URLs are built again."""
    found = _requirement(line)
    return found is not None and found.url is None


def _name(line: str) -> str:
    found = _requirement(line)
    return canonicalize_name(found.name) if found is not None else ""


def _requirement(line: str) -> Requirement | None:
    try:
        return Requirement(line)
    except InvalidRequirement:  # a folder, or an option of pip
        return None
