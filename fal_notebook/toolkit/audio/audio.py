"""Audio as files."""

from __future__ import annotations

from pydantic import ConfigDict

from fal_notebook.toolkit.fields import shown_as
from fal_notebook.toolkit.file.file import File


class Audio(File):
    """An audio file."""

    model_config = ConfigDict(json_schema_extra={"ui": {"field": "audio"}})


AudioField = shown_as("audio")
