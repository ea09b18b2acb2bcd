"""What is different between two revisions of an app, as unified diffs of text; pure functions."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any

from fal_notebook.gateway.store import Revision

# Shown as requirements, and not once more as options.
_ENVIRONMENT = ("requirements", "python_version")


def of(older: Revision, newer: Revision) -> dict[str, str]:
    """Return diffs of source, options, requirements, captured values and schema, by these names."""
    return {name: _diff(list(lines(older)), list(lines(newer))) for name, lines in _PARTS.items()}


def _diff(older: list[str], newer: list[str]) -> str:
    """Return a unified diff, "" of equal lines; which is which says who shows it."""
    found = difflib.unified_diff(older, newer, lineterm="")
    return "\n".join(list(found)[2:])


def _source(revision: Revision) -> Iterator[str]:
    """Yield the code that was captured, and a user's Dockerfile."""
    for source in revision.manifest.get("sources", {}).values():
        yield from source.rstrip().splitlines()
        yield ""
    image = revision.options.get("image")
    if isinstance(image, dict):
        yield from image["dockerfile_str"].strip().splitlines()


def _options(revision: Revision) -> Iterator[str]:
    setup = revision.manifest.get("setup")
    for name, value in sorted({**revision.options, "setup_function": setup}.items()):
        if name == "image" and isinstance(value, dict):
            value = {key: told for key, told in value.items() if key != "dockerfile_str"}
        if name not in _ENVIRONMENT:
            yield f"{name}={json.dumps(value, sort_keys=True)}"
    yield f"target={json.dumps(revision.target)}"


def _requirements(revision: Revision) -> Iterator[str]:
    """Yield what is installed for it; where that is nothing, what its code imported here."""
    manifest = revision.manifest
    yield f"python {manifest.get('python')}"
    given = revision.options.get("requirements") or manifest.get("distributions") or []
    for item in given:
        yield from [item] if isinstance(item, str) else item
    if not given:
        for name, version in manifest.get("packages", {}).items():
            yield f"{name} {version} (of the kernel)"


def _captured(revision: Revision) -> Iterator[str]:
    for value in revision.manifest.get("captured", ()):
        yield f"{value['name']}: {value['kind']}, {value['size']:,} bytes"


def _schema(revision: Revision) -> Iterator[str]:
    yield from json.dumps(revision.openapi, indent=2, sort_keys=True).splitlines()


_PARTS: dict[str, Any] = {
    "source": _source,
    "options": _options,
    "requirements": _requirements,
    "captured": _captured,
    "schema": _schema,
}
