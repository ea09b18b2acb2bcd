"""What `%fal diff` finds between two revisions: pure functions of their rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fal_notebook.gateway import difference
from fal_notebook.gateway.store import Revision

MANIFEST = {"python": "3.11", "sources": {"f": "def f():\n    return 1\n"}, "captured": []}


def revision(options: dict[str, Any] | None = None, **manifest: Any) -> Revision:
    given = {**MANIFEST, **manifest}
    return Revision("r", "me", "app", 1, "ACTIVE", "d", "p", options or {}, {}, given, {})


def changes(older: Revision, newer: Revision) -> dict[str, list[str]]:
    """Return the lines that went and came, of the parts in which any did."""
    found = difference.of(older, newer)
    lines = {part: text.splitlines() for part, text in found.items() if text}
    return {part: [line for line in ls if line[0] in "+-"] for part, ls in lines.items()}


def test_equal_revisions_differ_in_nothing() -> None:
    assert set(difference.of(revision(), revision())) == {
        *("source", "options", "requirements", "captured", "schema")
    }
    assert changes(revision(), revision()) == {}


def test_source_has_its_lines_around_and_lists_have_none() -> None:
    helper = "def g():\n    return 2\n"
    sources = {"sources": {**MANIFEST["sources"], "g": helper}}
    text = difference.of(revision(), revision(**sources))["source"]
    assert text == "@@ -1,2 +1,5 @@\n def f():\n     return 1\n+\n+def g():\n+    return 2"
    found = difference.of(revision({"a": 1, "b": 1, "c": 1}), revision({"a": 1, "b": 2, "c": 1}))
    assert found["options"] == "-b=1\n+b=2"


def test_a_dockerfile_is_source_and_the_rest_of_the_image_an_option() -> None:
    def image(text: str, **more: Any) -> Revision:
        return revision({"image": {"dockerfile_str": text, **more}})

    older, newer = image("FROM a\n", cmd=["x"]), image("FROM b\n", cmd=["y"])
    assert changes(older, newer) == {
        "source": ["-FROM a", "+FROM b"],
        "options": ['-image={"cmd": ["x"]}', '+image={"cmd": ["y"]}'],
    }
    bare = {"sources": {"server": "FROM a\n"}}
    assert changes(replace(older, manifest=bare), replace(older, manifest=bare)) == {}


def test_requirements_are_lines_whether_in_layers_or_not() -> None:
    older = revision({"requirements": ["six", "numpy"]})
    newer = revision({"requirements": [["six"], ["numpy", "pandas"]]})
    assert changes(older, newer) == {"requirements": ["+pandas"]}


def test_without_requirements_what_the_kernel_had_is_compared() -> None:
    older, newer = revision(packages={"numpy": "1.0"}), revision(packages={"numpy": "2.0"})
    lines = ["-numpy 1.0 (of the kernel)", "+numpy 2.0 (of the kernel)"]
    assert changes(older, newer) == {"requirements": lines}
    brought = {"requirements": ["numpy"]}
    assert changes(replace(older, options=brought), replace(newer, options=brought)) == {}


def test_captured_values_and_the_schema_are_compared() -> None:
    value = {"name": "model", "kind": "LogisticRegression", "size": 1234, "digest": "0a1b2c3d4e5f"}
    newer = replace(revision(captured=[value]), openapi={"paths": {}})
    assert changes(revision(), newer) == {
        "captured": ["+model: LogisticRegression, 1,234 bytes (0a1b2c3d4e5f)"],
        "schema": ["-{}", "+{", '+  "paths": {}', "+}"],
    }


def test_of_functions_the_source_tells_and_not_the_size() -> None:
    def taken(size: int) -> Revision:
        return revision(captured=[{"name": "f", "kind": "function", "size": size, "digest": ""}])

    assert changes(taken(184), taken(185)) == {}


def test_files_that_travel_along_are_compared_by_their_digest() -> None:
    older, newer = revision(context="a" * 64), revision(context="b" * 64)
    (gone, came) = changes(older, newer)["captured"]
    assert (gone[-13:], came[-13:]) == (" " + "a" * 12, " " + "b" * 12)
