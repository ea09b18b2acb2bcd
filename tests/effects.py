"""Tests of what an option does, each of which can be run with that option left out.

A test that passes although its option is ignored shows nothing. With the environment variable
``WITHOUT_OPTION=NAME`` `given` leaves that option out, and the test marked with it has to fail:
``python tests/effects.py`` runs every one so, and writes what came of it to OPTIONS.md.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
MARK = re.compile(r"^@effect_of\((.*?)\)", re.MULTILINE | re.DOTALL)


def effect_of(*options: str) -> Any:
    """Mark a test as one of what these options do."""
    return pytest.mark.effect_of(*options)


def given(**options: Any) -> dict[str, Any]:
    """Return options without the one that is left out."""
    left_out = os.environ.get("WITHOUT_OPTION")
    return {name: value for name, value in options.items() if name != left_out}


def marked() -> dict[str, list[str]]:
    """Return the files with tests of each option."""
    found = dict[str, list[str]]()
    for path in sorted(HERE.glob("test_*.py")):
        for mark in MARK.findall(path.read_text()):
            for name in re.findall(r'"(\w+)"', mark):
                if path.name not in found.setdefault(name, []):
                    found[name].append(path.name)
    return found
