"""How much the storage may hold: bytes are taken before they are written, given back after."""

from __future__ import annotations

from collections.abc import Callable

from fal_notebook.exceptions import DiskFullError


class Room:
    """Counts the bytes of all files, parts and uploads under way.

    Parameters
    ----------
    quota : int
        Most bytes that may be taken.
    free_up : callable
        Called when there is too little: removes what has expired and gives it back.
    """

    def __init__(self, quota: int, free_up: Callable[[], None]) -> None:
        self.used = 0
        self._quota = quota
        self._free_up = free_up

    def take(self, size: int) -> None:
        """Count bytes that are about to be written.

        Raises
        ------
        DiskFullError
            When they are above the quota.
        """
        self.check(size)
        self.used += size

    def check(self, size: int) -> None:
        """Refuse what cannot be taken.

        Raises
        ------
        DiskFullError
        """
        if self.used + size > self._quota:
            self._free_up()
        if self.used + size > self._quota:
            raise DiskFullError(
                f"the storage is full: {self.used} of storage_quota={self._quota} bytes are used; "
                "delete files, or raise the setting storage_quota and restart the gateway"
            )

    def give_back(self, size: int) -> None:
        """Count bytes that are gone."""
        self.used -= size
