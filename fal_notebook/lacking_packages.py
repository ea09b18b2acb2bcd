"""What helps where a runner lacks packages that the code needs: lines for pip, and their place."""

from __future__ import annotations

import re

from fal_notebook.payload.distributions import needed_by

_LACKING = re.compile(r"No module named '([\w.]+)'")
# As `runner.envelope.packages_compared` says it.
_OTHER = re.compile(r"\bwith (\S+) [^,]+, here is ")


def advice(error: str, own_image: bool) -> str:
    """Return what to do about an error of a runner that did not start; empty when that is unknown.

    Parameters
    ----------
    own_image : bool
        Whether the app runs in an image of the user's, where `requirements` are refused.
    """
    other = _OTHER.findall(error)
    modules = {*_LACKING.findall(error), *other}
    lines = " ".join(needed_by(modules).requirements) if modules else ""
    if own_image and lines:
        return f"add `RUN pip install {lines}` to the image: what the kernel has"
    if other:
        return f"give the kernel's versions in requirements: {lines or ' '.join(other)}"
    return ""
