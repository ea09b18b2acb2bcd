"""What is different between two revisions of an app, as unified diffs of text; pure functions."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from typing import Any

from fal_notebook.gateway.store import Revision

# Shown as requirements, and not once more as options.
_ENVIRONMENT = ("requirements", "python_version")


def of(older: Revision, newer: Revision) -> dict[str, str]:
    """Return diffs of source, options, requirements, captured values and schema, by these names.

    They are "" where nothing is different. Lists have no lines around what is.
    """
    texts = {name: _diff(lines(older), lines(newer), 3) for name, lines in _TEXTS.items()}
    lists = {name: _diff(lines(older), lines(newer), 0) for name, lines in _LISTS.items()}
    return {**texts, **lists}


def _diff(older: Iterator[str], newer: Iterator[str], around: int) -> str:
    """Return a unified diff without its head: who shows it says which is which."""
    found = difflib.unified_diff(list(older), list(newer), n=around, lineterm="")
    lines = list(found)[2:]
    return "\n".join(line for line in lines if around or not line.startswith("@@"))


def _source(revision: Revision) -> Iterator[str]:
    """Yield the code that was captured, and a user's Dockerfile."""
    image = revision.options.get("image")
    dockerfile = [image["dockerfile_str"]] if isinstance(image, dict) else []
    sources = dict.fromkeys([*revision.manifest.get("sources", {}).values(), *dockerfile])
    yield from "\n\n".join(source.strip("\n") for source in sources).splitlines()


def _options(revision: Revision) -> Iterator[str]:
    setup = revision.manifest.get("setup")
    for name, value in sorted({**revision.options, "setup_function": setup}.items()):
        if name == "image" and isinstance(value, dict):
            value = {key: told for key, told in value.items() if key != "dockerfile_str"}
        if name not in _ENVIRONMENT:
            yield f"{name}={_written(value)}"
    yield f"target={json.dumps(revision.target)}"


def _written(value: Any) -> str:
    """Return a value as it may stand in the line of a cell."""
    return "none" if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False)


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
    if context := revision.manifest.get("context"):
        yield f"files of the build context or of app_files: {context[:12]}"
    for value in revision.manifest.get("captured", ()):
        of_value = f", {value['size']:,} bytes ({value['digest']})" if value.get("digest") else ""
        yield f"{value['name']}: {value['kind']}{of_value}"


def _schema(revision: Revision) -> Iterator[str]:
    yield from json.dumps(revision.openapi, indent=2, sort_keys=True).splitlines()


Lines = Callable[[Revision], Iterator[str]]
_TEXTS: dict[str, Lines] = {"source": _source, "schema": _schema}
_LISTS: dict[str, Lines] = {
    "options": _options,
    "requirements": _requirements,
    "captured": _captured,
}
