"""Images as files, under fal's name of the package."""

from fal_notebook.toolkit.image.image import *  # noqa: F403
