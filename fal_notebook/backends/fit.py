"""Which libraries of the runner go with the versions that an environment or image has: pure.

They lie at the end of the runner's ``sys.path``, so that whatever the user has wins. What a library
of the runner needs may then be there in a version that it cannot use.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

Versions = Mapping[str, str]
"""Versions of distributions, by their canonical names."""
Needs = Mapping[str, Sequence[Requirement]]
"""What distributions require, by their canonical names."""


@functools.lru_cache
def needs_of(libraries: Path, python_minor: str) -> Needs:
    """Return what the distributions in a folder, which does not change any more, require."""
    found = metadata.distributions(path=[str(libraries)])
    return {canonicalize_name(d.name): applying(d.requires or (), python_minor) for d in found}


def applying(lines: Iterable[str], python_minor: str) -> list[Requirement]:
    """Return the requirements that apply to a Python minor, without extras."""
    python = {"extra": "", "python_version": python_minor, "python_full_version": python_minor}
    parsed = map(Requirement, lines)
    return [r for r in parsed if r.marker is None or r.marker.evaluate(dict(python))]


def pinned(layers: Iterable[Iterable[str]]) -> Versions:
    """Return the versions that lines of requirements leave no choice of."""
    found = {}
    for line in (line for layer in layers for line in layer):
        with contextlib.suppress(InvalidRequirement):  # a folder, or an option of pip
            requirement = Requirement(line)
            parts = list(requirement.specifier)
            exact = [p.operator for p in parts] == ["=="] and "*" not in parts[0].version
            if exact and requirement.marker is None:
                found[name_of(requirement)] = parts[0].version
    return found


def misfits(needs: Needs, found: Versions) -> list[Requirement]:
    """Return what the runner's libraries require and is found in other versions.

    Parameters
    ----------
    needs : mapping
        Of the libraries, see `needs_of`. Those that are themselves found are not used.
    found : mapping
        The versions that an environment or image has.
    """
    used = [needs[name] for name in needs if name not in found]
    return unmet([requirement for lines in used for requirement in lines], found)


def unmet(required: Iterable[Requirement], found: Versions) -> list[Requirement]:
    """Return the requirements of which another version is found."""
    return [r for r in required if name_of(r) in found and not _fits(r, found[name_of(r)])]


def refusal(wrong: Iterable[Requirement], found: Versions, brings: str) -> str:
    """Return the sentence for unmet requirements of which there is no way out.

    Parameters
    ----------
    wrong : sequence of Requirement
        See `unmet`; of several for one distribution the one that asks most is told.
    found : mapping
        The versions that an environment or image has.
    brings : str
        Who has them: "requirements bring".
    """
    asked = {name_of(r): r for r in sorted(wrong, key=_highest)}
    told = " and ".join(f"{name} {found[name]}" for name in asked)
    wanted = " and ".join(f"{name}{r.specifier}" for name, r in asked.items())
    return f"{brings} {told}, and the runner needs {wanted}: allow such a version"


def name_of(requirement: Requirement) -> str:
    """Return the canonical name of what is required."""
    return canonicalize_name(requirement.name)


def _fits(requirement: Requirement, version: str) -> bool:
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:  # nothing can be said of it
        return True


def _highest(requirement: Requirement) -> Version:
    return max(Version(part.version.removesuffix(".*")) for part in requirement.specifier)
