"""The Python side of what stands below a cell: traits hold its state, TypeScript draws it."""

from pathlib import Path

STATIC = Path(__file__).parent / "static"


def is_built() -> bool:
    """Say whether the JavaScript is there: a checkout has none before ``make lab``."""
    return (STATIC / "widget.js").exists()
