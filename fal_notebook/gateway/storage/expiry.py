"""How long files are kept whose uploads do not say it, and what apps are told of that."""

from __future__ import annotations

import functools
import json

from fal_notebook import settings

# Seconds (setting storage_expiry; 0: until they are deleted).
EXPIRY = 30 * 24 * 3600


@functools.cache
def default_preference() -> bytes:
    """Return the header's value for an app whose caller has no preference."""
    seconds = settings.setting("storage_expiry", EXPIRY)
    return json.dumps({"expiration_duration_seconds": seconds} if seconds else {}).encode()
