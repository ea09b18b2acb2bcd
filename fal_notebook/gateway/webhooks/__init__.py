"""Tells a URL of the caller's that a queued request is done: signed, guarded, tried again."""
