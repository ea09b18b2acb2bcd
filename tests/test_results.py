"""What a function returns is checked by its return annotation, as FastAPI does, in both forms."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from runner_bench import notebook
from test_schema import signature_of

from fal_notebook.runner import frames
from fal_notebook.runner.results import Output


@pytest.fixture(autouse=True)
def _a_notebook() -> Iterator[None]:
    with notebook():
        yield


def returned(annotation: str, value: str) -> tuple[Output, Any]:
    """Return the output of a function with this annotation, and a value of its notebook."""
    source = f"import threading\nvalue = {value}\ndef f() -> {annotation}: return value"
    return signature_of(source).output, vars(sys.modules["__main__"])["value"]


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        ("int", "5", 5),
        ("int", "'5'", 5),
        ("int", "np.int64(5)", 5),
        ("float", "np.float32(2)", 2.0),
        ("float", "float('nan')", None),
        ("list[float]", "np.ones(2)", [1.0, 1.0]),
        ("dict[int, list[float]]", "{np.int64(4): (np.float32(3),)}", {"4": [3.0]}),
        ("tuple[int, str]", "(1, 'a')", [1, "a"]),
        ("set[int]", "{1}", [1]),
        ("Point", "{'x': '1'}", {"x": 1, "y": 0}),
        ("Point", "type('Row', (), {'x': 3, 'y': 4})()", {"x": 3, "y": 4}),
        ("Optional[Point]", "None", None),
        ("Size", "Size(1)", {"width": 1, "height": 1}),
        ("Colour", "'red'", "red"),
        ("Literal['a', 'b']", "'a'", "a"),
        ("Iterable[int]", "[1, 2]", [1, 2]),
    ],
)
def test_a_result_that_fits_becomes_what_the_annotation_says(
    annotation: str, value: str, expected: Any
) -> None:
    output, came = returned(annotation, value)
    assert json.loads(output.to_json(came)) == expected
    output.validated(came)


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        ("None", "5", 5),  # as in FastAPI
        ("Any", "{'a': np.ones(1)}", {"a": [1.0]}),
        ("np.ndarray", "[1]", [1]),
        ("list[np.ndarray]", "5", 5),
        ("threading.Thread", "5", 5),
    ],
)
def test_what_pydantic_does_not_know_is_not_checked(
    annotation: str, value: str, expected: Any
) -> None:
    output, came = returned(annotation, value)
    assert json.loads(output.to_json(came)) == expected
    assert output.validated(came) is came


FOREIGN = """
from typing import TypedDict
class Foreign: pass
@dataclasses.dataclass
class Result:
    label: int
    scores: np.ndarray
@dataclasses.dataclass
class Holder:
    inner: Result
    foreign: Foreign | None = None
class Row(TypedDict):
    label: int
    scores: np.ndarray
value = Result(1, np.ones(1))
"""


@pytest.mark.parametrize(
    ("annotation", "result", "expected"),
    [
        ("Result", "value", {"label": 1, "scores": [1.0]}),
        ("Iterator[Result]", "value", {"label": 1, "scores": [1.0]}),
        (
            "Holder",
            "Holder(value)",
            {"inner": {"label": 1, "scores": [1.0]}, "foreign": None},
        ),
        ("Row", "{'label': 1, 'scores': np.ones(1)}", {"label": 1, "scores": [1.0]}),
    ],
)
def test_fields_that_pydantic_does_not_know_leave_the_whole_unchecked(
    annotation: str, result: str, expected: Any
) -> None:
    given = "yield" if annotation.startswith("Iterator") else "return"
    source = f"import dataclasses\nfrom typing import Iterator\n{FOREIGN}"
    source += f"def f() -> {annotation}: {given} value\nvalue = {result}"
    output = signature_of(source).output
    value = vars(sys.modules["__main__"])["value"]
    assert json.loads(output.to_json(value)) == expected
    assert output.validated(value) is value


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        ("int", "{'a': 1}", "`f` returned a dict, which is not the int of its annotation: Input"),
        ("dict", "[1]", "a list, which is not the dict of its annotation: Input should be"),
        ("Point", "{}", r"not the Point of its annotation: Field required \(at x\)"),
        ("list[int]", "[1, 'a']", r"not the list\[int\] of its annotation: .* \(at 1\)"),
        ("str", "None", "`f` returned None, which is not the str of"),
    ],
)
def test_a_result_that_does_not_fit_names_function_annotation_and_what_came(
    annotation: str, value: str, words: str
) -> None:
    output, came = returned(annotation, value)
    with pytest.raises(TypeError, match=words):
        output.to_json(came)
    with pytest.raises(TypeError, match=words):
        output.to_frame(frames.returned, came)


def test_what_cannot_be_pickled_is_named_with_function_and_type() -> None:
    output, lock = returned("Any", "threading.Lock()")
    words = "`f` returned a lock, which cannot be pickled .*; return plain data"
    with pytest.raises(TypeError, match=words):
        output.to_frame(frames.returned, lock)
