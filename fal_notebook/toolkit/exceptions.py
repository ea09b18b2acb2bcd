"""What the toolkit raises, named as fal's."""

from __future__ import annotations


class FalTookitException(Exception):  # noqa: N818  fal's names
    """Base of the toolkit's errors."""


class FileUploadException(FalTookitException):
    """A file could not be stored."""


class KVStoreException(FalTookitException):
    """A key or value cannot be stored."""


class DownloadError(FalTookitException):
    """A URL could not be downloaded."""
