"""Signatures of every kind become bodies, schemas and results, as a runner would make them."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from pydantic import ValidationError
from runner_bench import define, last_function, notebook

from fal_notebook.runner.openapi import openapi
from fal_notebook.runner.reports import Reports
from fal_notebook.runner.route import Route
from fal_notebook.runner.schema import Signature, read_signature
from fal_notebook.runner.workers import Workers

HEAD = """
import dataclasses, enum, functools
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from typing import Annotated, Any, Literal, Optional
import numpy as np
from pydantic import BaseModel, Field, RootModel
from starlette.requests import Request
from typing_extensions import NotRequired, ReadOnly, Required, TypedDict, Unpack
class Wide(TypedDict):
    width: Required[int]
    name: NotRequired[str]
    size: "NotRequired[Annotated[int, Field(ge=1)]]"
class Loose(Wide, total=False):
    point: "Point"
Odd = TypedDict("Odd", {"from": Required[ReadOnly[int]], "x-y": NotRequired[str]})
class Point(BaseModel):
    x: int
    y: int = 0
class Colour(enum.Enum):
    RED = "red"
@dataclasses.dataclass
class Size:
    width: int
    height: int = 1
"""


@pytest.fixture(autouse=True)
def _a_notebook() -> Iterator[None]:
    with notebook():
        yield


def function_of(source: str) -> Any:
    names = define(HEAD + source)
    return names[last_function(HEAD + source)]


def signature_of(source: str, skip_first: bool = False) -> Signature:
    function = function_of(source)
    hints = typing.get_type_hints(function, include_extras=True)
    return read_signature(function, hints, skip_first)


def called(source: str, body: Any) -> Any:
    """Return what the function returns for a JSON body."""
    function = function_of(source)
    hints = typing.get_type_hints(function, include_extras=True)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    args, kwargs = read_signature(function, hints, False).arguments(content)
    return function(*args, **kwargs)


def document(source: str) -> dict[str, Any]:
    function = function_of(source)
    return document_of(function, signature_of(source))


def document_of(function: Any, signature: Signature) -> dict[str, Any]:
    name = getattr(function, "__name__", "f")
    route = Route(name, function, signature, Workers(1), Reports({}))
    return openapi(name, function.__doc__, {"/": route})


def body_schema(source: str) -> dict[str, Any]:
    found = document(source)
    schema = found["paths"]["/"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return resolved(found, schema)


def result_schema(source: str) -> dict[str, Any]:
    found = document(source)
    (media,) = found["paths"]["/"]["post"]["responses"]["200"]["content"].values()
    return resolved(found, media["schema"])


def resolved(found: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return found["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


@pytest.mark.parametrize(
    ("source", "body", "result"),
    [
        ("def f(a: int, b: str = 'x'): return a, b", {"a": 1}, (1, "x")),
        ("def f(a: Optional[int] = None): return a", b"", None),
        ("def f(a: Literal['x', 'y']): return a", {"a": "y"}, "y"),
        ("def f(c: Colour): return c.name", {"c": "red"}, "RED"),
        ("def f(x: int = Field(3, ge=1)): return x", {}, 3),
        ("def f(x: Annotated[int, Field(ge=1)] = 4): return x", {}, 4),
        ("def f(x: int = Field(alias='X')): return x", {"X": 5}, 5),
        ("def f(x: list[int] = Field(default_factory=list)): return x", {}, []),
        ("def f(p: Point): return p.x", {"x": 7}, 7),
        ("def f(p: Annotated[Point, 'hint']): return p.x", {"x": 7}, 7),
        ("def f(p: Optional[Point] = None): return p", b"", None),
        ("def f(p: Point | None = None): return p.x", {"x": 2}, 2),
        ("def f(p: Point, n: int): return p.x + n", {"p": {"x": 1}, "n": 2}, 3),
        ("def f(ps: list[Point]): return ps[0].x", {"ps": [{"x": 1}]}, 1),
        ("def f(s: Size): return s.width * s.height", {"s": {"width": 6}}, 6),
        ("def f(): return 1", b"", 1),
        ("def f(a, b=2): return a + b", {"a": 1}, 3),
        ("def f(a, /, b): return a - b", {"a": 5, "b": 2}, 3),
        ("def f(*, a: int): return a", {"a": 5}, 5),
        ("def f(*args, a: int): return (args, a)", {"a": 5}, ((), 5)),
        ("def f(a: int, **more): return more", {"a": 1, "z": [2]}, {"z": [2]}),
        ("def f(**more: int): return more", {"z": "2"}, {"z": 2}),
        ("def f(p: Point, **more): return p.x, more", {"p": {"x": 1}, "k": 1}, (1, {"k": 1})),
        ("def f(**more: Unpack[Wide]): return more", {"width": "3"}, {"width": 3}),
        (
            "def f(**more: Unpack[Odd]): return more",
            {"from": "1", "x-y": "a"},
            {"from": 1, "x-y": "a"},
        ),
        (
            "def f(width: str, **more: Unpack[Loose]): return width, more['point'].x, more['name']",
            {"width": "3", "point": {"x": 4}, "name": "a"},
            ("3", 4, "a"),
        ),
        (
            "def f(copy, json, schema=1, model_x=2, _u=3, self=4, cls=5): "
            "return copy, json, schema, model_x, _u, self, cls",
            {"copy": 1, "json": 2, "_u": 9},
            (1, 2, 1, 2, 9, 4, 5),
        ),
        ("class L(RootModel[list[int]]): pass\ndef f(l: L): return sum(l.root)", [1, 2], 3),
        ("def f(a: np.ndarray = np.ones(2)): return a.sum()", {}, 2.0),
    ],
)
def test_a_body_becomes_arguments(source: str, body: Any, result: Any) -> None:
    assert called(source, body) == result


@pytest.mark.parametrize(
    ("source", "body", "kind", "loc"),
    [
        ("def f(a: int): return a", {}, "missing", ("a",)),
        ("def f(a: int): return a", {"a": "x"}, "int_parsing", ("a",)),
        ("def f(a: int): return a", {"a": 1, "b": 2}, "extra_forbidden", ("b",)),
        ("def f(a: int): return a", b"{", "json_invalid", ()),
        ("def f(a: int): return a", b"", "missing", ("a",)),
        ("def f(_a: int): return a", {}, "missing", ("_a",)),
        ("def f(a: int = Field(3, ge=1)): return a", {"a": 0}, "greater_than_equal", ("a",)),
        ("def f(p: Point): return p", b"", "missing", ()),
        ("def f(p: Point, n: int): return p", {"p": {}, "n": 1}, "missing", ("p", "x")),
        ("def f(**more: int): return more", {"z": "x"}, "int_parsing", ("z",)),
        ("def f(): return 1", {"a": 1}, "extra_forbidden", ("a",)),
        ("def f(**more: Unpack[Wide]): return 1", {}, "missing", ("width",)),
        ("def f(r: Request, **more: Unpack[Wide]): return 1", {}, "missing", ("width",)),
        ("def f(**more: Unpack[Wide]): return 1", {"width": "a"}, "int_parsing", ("width",)),
        ("def f(**more: Unpack[Wide]): return 1", {"width": 1, "b": 1}, "extra_forbidden", ("b",)),
        (
            "def f(**more: Unpack[Loose]): return 1",
            {"width": 1, "size": 0},
            "greater_than_equal",
            ("size",),
        ),
    ],
)
def test_a_wrong_body_is_named_by_the_parameter(
    source: str, body: Any, kind: str, loc: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as caught:
        called(source, body)
    (error,) = caught.value.errors()
    assert (error["type"], error["loc"]) == (kind, loc)


@pytest.mark.parametrize("more", ["more", "more: Unpack[Own]"])
@pytest.mark.parametrize(
    ("parameters", "name", "skip_first"),
    [
        ("self, a: int", "self", False),
        ("this, model, a: int", "model", True),
        ("this, a: int, *, request: Request", "request", False),
    ],
)
def test_further_names_are_none_that_the_function_is_given_otherwise(
    more: str, parameters: str, name: str, skip_first: bool
) -> None:
    own = f"Own = TypedDict('Own', {{{name!r}: int}})\n"
    source = f"{HEAD}{own}class A:\n    def f({parameters}, **{more}): return more\n"
    method = define(source)["A"]().f
    hints = typing.get_type_hints(method, include_extras=True)
    signature = read_signature(method, hints, skip_first)
    body = json.dumps({"a": 1, name: 2}).encode()
    with pytest.raises(ValidationError) as caught:
        signature.arguments(body)
    (error,) = caught.value.errors()
    assert (error["type"], error["loc"]) == ("extra_forbidden", (name,))
    assert name not in signature.input.json_schema()["properties"]


def test_a_name_that_stands_for_itself_by_place_only_may_be_given() -> None:
    source = "class A:\n    def f(self, /, **more): return more\n"
    signature = read_signature(define(source)["A"]().f, {}, False)
    assert signature.arguments(b'{"self": 2}') == ((), {"self": 2})


def test_a_mutable_default_is_made_anew_for_each_call() -> None:
    signature = signature_of("def f(items: list = [1]): return items")
    first = signature.arguments(b"")[1]["items"]
    first.append(2)
    assert signature.arguments(b"")[1]["items"] == [1]


def test_parameters_keep_their_names_order_and_constraints_in_the_schema() -> None:
    schema = body_schema(
        "def f(z: int = Field(3, ge=1, description='how many'), copy: str = 'c', a: bool = True):\n"
        "    pass"
    )
    assert schema["x-fal-order-properties"] == ["z", "copy", "a"] == list(schema["properties"])
    assert schema["properties"]["z"] == {
        "type": "integer", "minimum": 1, "default": 3, "title": "Z", "description": "how many"
    }  # fmt: skip
    assert schema["title"] == "FInput"
    assert schema["additionalProperties"] is False


def test_the_keys_of_an_unpacked_typed_dict_are_in_the_schema() -> None:
    schema = body_schema("def f(**more: Unpack[Wide]): return 1")
    assert list(schema["properties"]) == ["width", "name", "size"]
    assert (schema["required"], schema["additionalProperties"]) == (["width"], False)
    assert "default" not in schema["properties"]["size"]


def test_nested_models_keep_the_order_of_their_fields_too() -> None:
    found = document("def f(p: Point, n: int): pass")
    assert found["components"]["schemas"]["Point"]["x-fal-order-properties"] == ["x", "y"]


def test_the_result_of_setup_is_left_out() -> None:
    signature = signature_of("def f(model, x: int): pass", skip_first=True)
    assert [p.name for p in signature.parameters] == ["x"]
    signature = signature_of("def f(*everything, x: int): pass", skip_first=True)
    assert [p.name for p in signature.parameters] == ["x"]


@pytest.mark.parametrize("source", ["def f(): pass", "def f(*, x): pass", "def f(**x): pass"])
def test_a_result_of_setup_without_an_argument_for_it_is_refused(source: str) -> None:
    with pytest.raises(TypeError, match="`f` takes no first argument"):
        signature_of(source, skip_first=True)


def test_a_model_named_like_the_body_is_not_mixed_up_with_it() -> None:
    source = "class FInput(BaseModel):\n    q: int\ndef f(data: FInput, n: int) -> FInput: pass"
    schema = body_schema(source)
    assert list(schema["properties"]) == ["data", "n"]
    inner = resolved(document(source), schema["properties"]["data"])
    assert list(inner["properties"]) == ["q"]
    assert list(result_schema(source)["properties"]) == ["q"]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ("int", {"type": "integer"}),
        ("None", {"type": "null"}),
        ("Optional[int]", {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        ("np.ndarray", {}),
        ("list[np.ndarray]", {"type": "array", "items": {}}),
        ("Any", {}),
    ],
)
def test_the_return_annotation_is_the_schema_of_the_result(annotation: str, expected: Any) -> None:
    assert result_schema(f"def f() -> {annotation}: pass") == expected


@pytest.mark.parametrize(
    "source",
    [
        "def f() -> Iterator[int]: yield 1",
        "def f() -> Iterable[int]: yield 1",
        "def f() -> Generator[int, None, None]: yield 1",
        "async def f() -> AsyncIterator[int]: yield 1",
    ],
)
def test_a_generator_has_the_schema_of_one_item(source: str) -> None:
    responses = document(source)["paths"]["/"]["post"]["responses"]
    assert responses["200"]["content"] == {"text/event-stream": {"schema": {"type": "integer"}}}


def test_a_list_annotated_as_iterable_is_not_a_stream() -> None:
    source = "def f() -> Iterable[int]: return [1]"
    assert result_schema(source) == {"type": "array", "items": {"type": "integer"}}


@pytest.mark.parametrize(
    ("source", "required"),
    [
        ("def f(): pass", False),
        ("def f(a: int = 1): pass", False),
        ("def f(a: int): pass", True),
        ("def f(p: Point): pass", True),
        ("class D(BaseModel):\n    x: int = 1\ndef f(d: D): pass", True),
        ("def f(p: Point | None = None): pass", False),
        ("class L(RootModel[list[int]]): pass\ndef f(l: L): pass", True),
    ],
)
def test_the_body_is_required_when_something_in_it_is(source: str, required: bool) -> None:
    assert document(source)["paths"]["/"]["post"]["requestBody"]["required"] is required


@pytest.mark.parametrize(
    "source",
    [
        "def f(): pass",
        "def f(p: Point, c: Colour, s: Size = Size(1), *, o: Optional[Point] = None) -> Size: pass",
        "class Tree(BaseModel):\n    kids: list['Tree'] = []\ndef f(t: Tree) -> Tree: pass",
        "def f(a: np.ndarray = np.ones(2), g: Any = object()) -> np.ndarray: pass",
        "from typing import TypeVar, Generic\nT = TypeVar('T')\n"
        "class Page(BaseModel, Generic[T]):\n    items: list[T]\n"
        "def f(p: Page[int], q: Page[Point]) -> Page[Point]: pass",
    ],
)
def test_the_document_is_sound_openapi(source: str) -> None:
    found = document(source)
    assert re.fullmatch(r"3\.1\.\d+", found["openapi"])
    assert found["info"].keys() >= {"title", "version"}
    assert found["x-fal-order-paths"] == list(found["paths"]) == ["/"]
    operation = found["paths"]["/"]["post"]
    assert all("description" in response for response in operation["responses"].values())
    names = found["components"]["schemas"]
    assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", name) for name in names)
    references = re.findall(r'"\$ref": "([^"]*)"', json.dumps(found))
    assert all(r.removeprefix("#/components/schemas/") in names for r in references)
    assert "$defs" not in json.dumps(found)


def test_a_partial_function_asks_for_what_is_left() -> None:
    function = partial(function_of("def f(a: int, b: int, c: int = 1): return a, b, c"), 1, c=5)
    hints = typing.get_type_hints(function.func)
    signature = read_signature(function, hints, False)
    args, kwargs = signature.arguments(b'{"b": 2}')
    assert function(*args, **kwargs) == (1, 2, 5)
    schema = document_of(function, signature)["components"]["schemas"]["FInput"]
    assert list(schema["properties"]) == ["b", "c"]


@pytest.mark.parametrize(
    ("annotation", "given", "shown"),
    [
        ("Point | Literal['small']", {"x": 1}, "Point(x=1, y=0)"),
        ("Point | Literal['small']", "small", "'small'"),
        ("Point | Literal['small'] | None", {"x": 1}, "Point(x=1, y=0)"),
        ("list[Point]", [{"x": 1}], "[Point(x=1, y=0)]"),
        ("dict[str, Point] | np.ndarray", {"a": {"x": 1}}, "{'a': Point(x=1, y=0)}"),
        ("Point | dict", {"x": 1}, "Point(x=1, y=0)"),
        ("dict", {"x": "1"}, "{'x': '1'}"),
        ("int", "1", "'1'"),
    ],
)
def test_data_becomes_the_models_that_an_annotation_of_a_python_call_holds(
    annotation: str, given: Any, shown: str
) -> None:
    signature = signature_of(f"def f(a: {annotation}, n: int = 1): pass")
    (value,), _ = signature.python_arguments((given,), {})
    _, named = signature.python_arguments((), {"a": given})
    assert repr(value) == repr(named["a"]) == shown
