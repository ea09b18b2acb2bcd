"""The lines of keys in TOML, however they are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fal_notebook.exceptions import OptionError
from fal_notebook.toml_text import parse

TEXT = '''# [no table]
[project]
name = "x" # [neither]
dependencies = [
  "a", # ]
  "b]",
]
[tool.fal.apps."my server"]
doc = """
[x]
y = 1"""
a.b = {c = 1, "d = 2" = "="}
"q=" = '#'

[[x]]
y=1
[ tool . fal . apps.z.image ]
k = 1
[tool.fal.apps.z]'''
LINES = {
    ("project", "name"): 3,
    ("project", "dependencies"): 4,
    ("tool", "fal", "apps", "my server"): 8,
    ("tool", "fal", "apps", "my server", "doc"): 9,
    ("tool", "fal", "apps", "my server", "a", "b"): 12,
    ("tool", "fal", "apps", "my server", "a", "b", "c"): 12,
    ("tool", "fal", "apps", "my server", "q="): 13,
    ("x", "y"): 16,
    ("tool", "fal", "apps", "z", "image", "k"): 18,
    ("tool", "fal", "apps", "z"): 19,
    ("tool", "fal", "apps"): 8,
}


@pytest.mark.parametrize("path", LINES, ids=".".join)
def test_each_key_has_its_line(path: tuple[str, ...]) -> None:
    assert parse(TEXT, "a.toml").where(path) == f"a.toml, line {LINES[path]}"
    assert parse(TEXT.replace("\n", "\r\n"), "a", 10).where(path) == f"a, line {LINES[path] + 9}"


def test_what_stands_nowhere_has_no_line() -> None:
    assert parse(TEXT, "a.toml").where(("nothing",)) == "a.toml"


def test_what_is_no_toml_is_refused_with_its_line() -> None:
    with pytest.raises(OptionError) as refusal:
        parse("a = 1\nb = \n", "a.toml", 2)
    assert str(refusal.value) == "a.toml, line 3: this is no TOML: Invalid value"
    with pytest.raises(OptionError, match=r"a\.toml, line 2: this is no TOML"):
        parse('a = 1\nb = """\n', "a.toml")


@given(st.lists(st.text(st.characters(exclude_categories=("Cc", "Cs"))), min_size=1))
def test_texts_hide_no_key(texts: list[str]) -> None:
    quoted = [text.replace("\\", "\\\\").replace('"', '\\"') for text in texts]
    lines = [f'"k{n}" = "{text}"' for n, text in enumerate(quoted)]
    found = parse("\n".join(lines), "f")
    assert [found.where((f"k{n}",)) for n in range(len(texts))] == [
        f"f, line {n + 1}" for n in range(len(texts))
    ]
