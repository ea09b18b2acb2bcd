"""What the running step of a build says, or how far it is: shown beside the step, not kept."""

from __future__ import annotations


class Detail(str):
    """Follows the plain text that names the step; the next one takes its place.

    Attributes
    ----------
    part : float, optional
        How much of the step is done, from 0 to 1, where that is known.
    """

    part: float | None

    def __new__(cls, text: str, part: float | None = None) -> Detail:
        """Take the text and the part."""
        self = super().__new__(cls, text)
        self.part = part
        return self
