"""Files, under fal's name of the package."""

from fal_notebook.toolkit.file.file import *  # noqa: F403
