"""Videos as files, under fal's name of the package."""

from fal_notebook.toolkit.video.video import *  # noqa: F403
