"""The platforms that a Dockerfile asks for, held against what its base images are made for.

The classic builder takes the image that is here, whatever ``--platform`` says, and says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from fal_notebook import base_images
from fal_notebook.exceptions import BuildError

_SYSTEMS = frozenset({"linux", "windows", "darwin", "freebsd"})
# Other names of architectures, by which builders know them too.
_ALIASES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armel": "arm",
    "i386": "386",
}


def refuse_other(text: str, build_args: Mapping[str, str], made_for: Mapping[str, str]) -> None:
    """Refuse a Dockerfile that asks for a base image of another architecture than that has.

    Parameters
    ----------
    made_for : mapping
        The architectures of the base images that are here, by the names in the Dockerfile.

    Raises
    ------
    BuildError
        One sentence with the line.
    """
    for line, platform, name in base_images.platforms(text, build_args):
        wanted, here = architecture(platform), made_for.get(name)
        if wanted and here and wanted != here:
            raise BuildError(
                f"line {line} of the Dockerfile says --platform={platform}, and the image {name} "
                f"that is here is made for {here}: leave out --platform, or, where programs for "
                f"{wanted} run, bring the image for {wanted} to this machine"
            )


def architecture(platform: str) -> str:
    """Return that of a platform such as ``linux/arm64/v8``, as images name it; "" for none."""
    words = [word for word in platform.lower().split("/") if word not in _SYSTEMS]
    return _ALIASES.get(words[0], words[0]) if words else ""
