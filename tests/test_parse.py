"""The magic line: quotes, brackets, lists, variables, and what is said when it cannot be read."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fal_notebook.container import ContainerImage
from fal_notebook.exceptions import OptionError
from fal_notebook.gateway.difference import _written
from fal_notebook.magics.parse import parse_line
from fal_notebook.options import parse_options, split_options


def setup() -> None:
    """Stand for a function of the notebook."""


IMAGE = ContainerImage("FROM a")
SPEC = {"openapi": {"paths": {}}}
NAMESPACE: dict[str, Any] = {
    "n": 3,
    "size": "L",
    "reqs": ["a", "b"],
    "pair": ("a", "b"),
    "version": "2.0",
    "image": IMAGE,
    "spec": SPEC,
    "setup": setup,
}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("machine_type=GPU-A100", "machine_type", "GPU-A100"),
        ("machine_type=GPU-A100,GPU-L40", "machine_type", ["GPU-A100", "GPU-L40"]),
        ('machine_type=["GPU-A100","L"]', "machine_type", ["GPU-A100", "L"]),
        ("machine_type=[L]", "machine_type", ["L"]),
        ("machine_type=$size", "machine_type", "L"),
        ("machine_type=[GPU-A100, $size]", "machine_type", ["GPU-A100", "L"]),
        ("keep_alive=300", "keep_alive", 300),
        ("--keep-alive=300", "keep_alive", 300),
        ("keep-alive=-1", "keep_alive", -1),
        ("keep_alive=$n", "keep_alive", 3),
        ("keep_alive={n}", "keep_alive", 3),
        ("keep_alive=1.5", "keep_alive", 1.5),
        ("serve=true", "serve", True),
        ("serve=False", "serve", False),
        ("max_concurrency=none", "max_concurrency", None),
        ("requirements=none", "requirements", None),
        ("name=none", "name", None),
        ("python_version=3.10", "python_version", "3.10"),
        ('python_version="3.10"', "python_version", "3.10"),
        ("message=123", "message", "123"),
        ("message=true", "message", "true"),
        ('message="two words, {n} $n {{n}} $$n"', "message", "two words, 3 3 {n} $n"),
        ("message=v${version}x", "message", "v2.0x"),
        (r'message="say \"hi\""', "message", 'say "hi"'),
        ("requirements=numpy", "requirements", ["numpy"]),
        ("requirements=pandas>=2,<3", "requirements", ["pandas>=2,<3"]),
        (
            "requirements=numpy,pandas>=2,<3,scipy",
            "requirements",
            ["numpy", "pandas>=2,<3", "scipy"],
        ),
        ('requirements=["a>=1,<2","b"]', "requirements", ["a>=1,<2", "b"]),
        ('requirements=["a>=1,<2", "b"]', "requirements", ["a>=1,<2", "b"]),
        ('requirements=("a", "b")', "requirements", ["a", "b"]),
        ('requirements="a>=1,<2","b"', "requirements", ["a>=1,<2", "b"]),
        ("requirements=[a>=1,<2, b]", "requirements", ["a>=1,<2", "b"]),
        ("requirements=[[a, b>=1,!=2], [c]]", "requirements", [["a", "b>=1,!=2"], ["c"]]),
        (
            "requirements=uvicorn[standard,x]>=1,~=2,b",
            "requirements",
            ["uvicorn[standard,x]>=1,~=2", "b"],
        ),
        ("requirements=a,~/lib,../b,./c", "requirements", ["a", "~/lib", "../b", "./c"]),
        ("requirements=numpy=={version}", "requirements", ["numpy==2.0"]),
        ('requirements=["numpy=={version}"]', "requirements", ["numpy==2.0"]),
        ("requirements={reqs}", "requirements", ["a", "b"]),
        ("requirements=$pair", "requirements", ("a", "b")),
        ("requirements=[]", "requirements", []),
        ("allow_secret=KEY", "allow_secret", ["KEY"]),
        ("pass_env=A,B", "pass_env", ["A", "B"]),
        (r'app_files_ignore=["\.pyc$"]', "app_files_ignore", [r"\.pyc$"]),
        ("metadata=spec", "metadata", SPEC),
        ("metadata={spec}", "metadata", SPEC),
        (
            'metadata={"openapi": {"$ref": "#/a", "/x/{id}": [1, 2]}}',
            "metadata",
            {"openapi": {"$ref": "#/a", "/x/{id}": [1, 2]}},
        ),
        (
            'retry_config={"timeout":{"retries":true}}',
            "retry_config",
            '{"timeout":{"retries":true}}',
        ),
        ("image=image", "image", IMAGE),
        ("image=my-org/my-server:latest", "image", "my-org/my-server:latest"),
        ("image='python'", "image", "python"),
        ("image=none", "image", None),
        ("setup_function=setup", "setup_function", setup),
        ('health_check={"path": "/health"}', "health_check", {"path": "/health"}),
        ("unheard_of=3", "unheard_of", 3),
    ],
)
def test_a_value_is_read_as_it_is_meant(text: str, key: str, value: Any) -> None:
    assert parse_line(text, NAMESPACE) == (None, {key: value})


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("", None),
        ("   ", None),
        ("predict", "predict"),
        ("predict keep_alive=3", "predict"),
        ("'my-app' keep_alive=3", "my-app"),
        ("app-$n", "app-3"),
    ],
)
def test_the_word_in_front_is_the_name(line: str, name: str | None) -> None:
    assert parse_line(line, NAMESPACE)[0] == name


def test_the_line_of_the_issue_is_parsed() -> None:
    name, values = parse_line("  machine_type=GPU-A100 keep_alive=300 ", {})
    assert name is None
    options, _ = split_options(values)
    assert (options.machine_type, options.keep_alive) == ("GPU-A100", 300)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "predict other",
            "'other' is not of the form key=value; no spaces around '=', the app's name first",
        ),
        ("requirements=numpy, pandas", "'pandas' is not of the form key=value"),
        ("keep_alive = 300", "there are no spaces around '='"),
        ("keep_alive= 300", "keep_alive= has no value"),
        ("predict --wait", "write --wait=true to switch an option on"),
        ("--wait", "write --wait=true to switch an option on"),
        ("keep_alive=1 keep-alive=2", "keep_alive is given twice"),
        ("predict name=other", "the name is given twice, as predict and as name="),
        ("message='open", "\"'\" is missing in: message='open"),
        ("message=don't", "is missing in"),
        ("requirements=[a", "']' is missing in"),
        ("metadata={'a': [1}", "'}' closes nothing in"),
        ("keep_alive=3)", "')' closes nothing in"),
        ("keep_alive=$unknown", "the notebook has no variable 'unknown'"),
        ("keep_alive={unknown}", "the notebook has no variable 'unknown'"),
        ("message={size.real}", "{size.real} is not a variable's name"),
        ("message=$reqs.id", "the variable 'reqs' is a list, which has no text to stand in"),
        ("metadata=unknown", "the notebook has no variable 'unknown'"),
        ("setup_function=unknown", "the notebook has no variable 'unknown'"),
        ("image=python", "a reference to an image contains '/' or ':' or is quoted"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_with_a_hint(line: str, sentence: str) -> None:
    with pytest.raises(OptionError) as refusal:
        parse_line(line, NAMESPACE)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_nothing_is_evaluated() -> None:
    _, values = parse_line("metadata=__import__('os').getcwd() keep_alive=1+1", {})
    assert values == {"metadata": "__import__('os').getcwd()", "keep_alive": "1+1"}


OPENINGS = ["requirements=", "metadata=", "image=", "name=", "keep_alive=", "--a-b="]
MARKS = ["[", "]", "{", "}", "(", ")", "'", '"', "\\", ",", "$", "{{", "$$", "=", "-", " ", "\t"]
SNIPPETS = st.sampled_from([*OPENINGS, *MARKS, "n", "{n}", "3", "none"])


@given(st.text() | st.lists(SNIPPETS).map("".join))
@example("requirements=" + "[" * 3000 + "x" + "]" * 3000)
@example("keep_alive=" + "9" * 5000)
@example("keep_alive=" + "-" * 100_000 + "1")
@example("keep_alive=\x00")
@example("message='\\ud800'")
def test_nothing_but_an_option_error_comes_out(line: str) -> None:
    with suppress(OptionError):
        _, values = parse_line(line, NAMESPACE)
        split_options(values)


# Variables are looked up in quotes, too.
PLAIN = st.text(st.characters(exclude_characters="${}", codec="utf-8"))
PRINTED: dict[str, st.SearchStrategy[Any]] = {
    "keep_alive": st.integers(0),
    "max_concurrency": st.none() | st.integers(1),
    "concurrency_buffer_perc": st.integers(0),
    "serve": st.booleans(),
    "message": st.none() | PLAIN,
    "requirements": st.none() | st.just(["numpy>=2,<3", "six"]) | st.just([["a"], ["b!=1,>=0"]]),
    "regions": st.none() | st.lists(st.sampled_from(["us-east", "eu-west"]), min_size=1),
    "secrets": st.none() | st.lists(st.from_regex("[A-Z]{2,9}", fullmatch=True)),
    "health_check": st.just({"path": "/health", "failure_threshold": 2}),
    "retry_config": st.just({"timeout": {"retries": 2}}),
    "metadata": st.dictionaries(PLAIN, PLAIN | st.integers()),
}


@given(st.fixed_dictionaries({}, optional=PRINTED))
def test_what_a_diff_prints_is_read_as_it_was(values: dict[str, Any]) -> None:
    line = " ".join(f"{name}={_written(value)}" for name, value in values.items())
    try:
        meant = parse_options(values)
    except OptionError:
        return
    assert parse_options(parse_line(line, {})[1]) == meant


@given(st.lists(st.text(st.characters(exclude_characters="${}", codec="utf-8"))))
def test_a_list_written_as_python_comes_back(items: list[str]) -> None:
    line = f"app_files={items!r}"
    assert parse_line(line, {}) == (None, {"app_files": items})
