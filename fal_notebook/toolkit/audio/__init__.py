"""Audio as files, under fal's name of the package."""

from fal_notebook.toolkit.audio.audio import *  # noqa: F403
