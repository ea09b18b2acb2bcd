"""The distributions that code imports, at the versions installed here: what its image needs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution, distributions

from packaging.utils import canonicalize_name
from packaging.version import Version

# They ship with every runner; any pickle refers to the second.
_SHIPPED = {"fal-notebook", "cloudpickle"}


@dataclass(frozen=True)
class Needed:
    """What an image needs for some modules.

    Attributes
    ----------
    requirements : tuple of str
        Lines for pip.
    lacking : tuple of str
        Distributions that only this machine has, from a folder.
    """

    requirements: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()


def needed_by(modules: Iterable[str]) -> Needed:
    """Return what an image needs so that these modules can be imported there."""
    found = {name: distribution(name) for name in sorted(_names(set(modules)))}
    lines = {name: _line(name, item) for name, item in found.items()}
    return Needed(
        tuple(line for line in lines.values() if line),
        tuple(name for name, line in lines.items() if not line),
    )


def _names(modules: set[str]) -> Iterator[str]:
    """Yield the names of the distributions; of a namespace only of those that hold the module."""
    installed = distributions_of({module.partition(".")[0] for module in modules})
    for module in modules:
        candidates = installed.get(module.partition(".")[0], set())
        for name in candidates:
            if len(candidates) == 1 or _holds(name, module):
                yield from {canonicalize_name(name)} - _SHIPPED


def distributions_of(packages: set[str]) -> dict[str, set[str]]:
    """Return the distributions by the packages of theirs that are asked for.

    As `importlib.metadata.packages_distributions`, which parses all that is installed: that takes
    longer than the rest of a deploy that changes nothing.
    """
    wanted = packages - sys.stdlib_module_names
    found: dict[str, set[str]] = {}
    if wanted:
        names = "|".join(map(re.escape, wanted))
        pattern = re.compile(rf"^({names})(?=/|$|\.([\w-]+\.)?(py|so|pyd),)", re.MULTILINE)
        for item in distributions():
            listed = item.read_text("top_level.txt") or item.read_text("RECORD") or ""
            for name in {match[1] for match in pattern.finditer(listed)}:
                found.setdefault(name, set()).add(item.metadata["Name"])
    return found


def _holds(name: str, module: str) -> bool:
    path = module.replace(".", "/")
    files = [str(file) for file in distribution(name).files or ()]
    return any(file == f"{path}.py" or file.startswith(f"{path}/") for file in files)


def _line(name: str, item: Distribution) -> str:
    """Return a line for pip; empty for what lies in a folder of this machine."""
    origin: Mapping[str, dict[str, str]] = json.loads(item.read_text("direct_url.json") or "{}")
    url = str(origin.get("url", ""))
    if url.startswith("file:"):
        return ""
    if (vcs := origin.get("vcs_info")) is not None:
        return f"{name} @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
    if url:
        return f"{name} @ {url}"
    return f"{name}=={Version(item.version).public}"  # no index has local versions
