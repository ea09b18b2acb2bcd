"""Tests of what an option does, each of which can be run with that option left out.

A test that passes although its option is ignored shows nothing. With the environment variable
``WITHOUT_OPTION=NAME`` `given` leaves that option out, and the test marked with it has to fail:
``python tests/effects.py [NAME ...]`` runs every one so, and writes what came of it to OPTIONS.md.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
RECORD = HERE / "OPTIONS.md"
NOT_RUN = "not run yet"
PASSED = "PASSED, so it shows nothing"
HEAD = """# What fails without each option

Every test here was run once with its option left out, and said this. `make options` runs them
again, `make options ARGS="keep_alive force"` those of two options.

| option | test | without the option |
|---|---|---|
"""
# What is another at each run.
_VARYING = (
    (re.compile(r"/tmp/[^\s'\"]*|\S*/pytest-of-\S*"), "…"),
    (re.compile(r"0x[0-9a-f]{6,}"), "0x…"),
    (re.compile(r"\b[0-9a-f]{12,}\b"), "…"),
)
_LONGEST = 110

Row = tuple[str, str]


def effect_of(*options: str) -> Any:
    """Mark a test as one of what these options do."""
    return pytest.mark.effect_of(*options)


def given(**options: Any) -> dict[str, Any]:
    """Return options without the one that is left out."""
    left_out = os.environ.get("WITHOUT_OPTION")
    return {name: value for name, value in options.items() if name != left_out}


def marked() -> dict[str, list[str]]:
    """Return the tests of each option, as ``test_file.py::test_name``."""
    found = dict[str, list[str]]()
    for path in sorted(HERE.glob("test_*.py")):
        for function in ast.parse(path.read_text()).body:
            for option in _options_of(function):
                test = f"{path.name}::{getattr(function, 'name', '')}"
                found.setdefault(option, []).append(test)
    return dict(sorted(found.items()))


def _options_of(node: ast.stmt) -> Iterator[str]:
    for mark in getattr(node, "decorator_list", ()):
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "effect_of":
            yield from (ast.literal_eval(argument) for argument in mark.args)


# --- the record -------------------------------------------------------------------------------
def recorded() -> dict[Row, str]:
    """Return what the record says of each option and test."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    rows = [line.strip("| ").split(" | ", 2) for line in lines if line.startswith("| `")]
    return {(option.strip("`"), test.strip("`")): said for option, test, said in rows}


def write(said: Mapping[Row, str]) -> None:
    """Write the record of every marked test; those that `said` lacks were not run yet."""
    rows = [(option, test) for option, tests in marked().items() for test in tests]
    lines = [f"| `{o}` | `{t}` | {said.get((o, t), NOT_RUN)} |\n" for o, t in rows]
    RECORD.write_text(HEAD + "".join(lines))


def without(option: str, test: str) -> str:
    """Run a test with its option left out, and return in one line what it said."""
    flags = ["-q", "--tb=no", "-rfEs", "-p", "no:cacheprovider", "-n0", "--timeout=120"]
    flags += ["-W", "ignore::UserWarning"]  # a deploy tells what lacks another option
    variables = {**os.environ, "WITHOUT_OPTION": option, "COLUMNS": "400", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "pytest", *flags, test]
    done = subprocess.run(
        command, cwd=HERE, env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode == 0 and " passed" in done.stdout:
        return PASSED
    told = re.search(r"^(FAILED|ERROR|SKIPPED) .*?(?: - |: )(.*)$", done.stdout, re.MULTILINE)
    if told is None:
        return f"ERROR: {(done.stdout + done.stderr).strip().splitlines()[-1]}"
    prefix = "" if told[1] == "FAILED" else f"{told[1]}: "
    return prefix + _one_line(told[2])


def _one_line(text: str) -> str:
    for pattern, place in _VARYING:
        text = pattern.sub(place, text)
    text = text.replace("|", "\\|")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def main(names: list[str]) -> int:
    """Run the tests of these options, of all when none is named; return how many show nothing."""
    said, useless = recorded(), 0
    for option, tests in marked().items():
        for test in tests if not names or option in names else ():
            said[option, test] = what = without(option, test)
            useless += what == PASSED or what.startswith("ERROR")
            print(f"{option}: {test}: {what}", flush=True)
            write(said)
    return useless


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
