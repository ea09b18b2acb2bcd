"""Annotations of every kind, at every place: what they mean in a runner is what they mean here.

``annotation_matrix.py capture FOLDER STEP`` defines each STEP-th case as a notebook would, writes
its payload, and prints what it takes and gives here; ``annotation_matrix.py load FOLDER`` prints
the same of the payloads. Their digests are in ``digests.json``.
"""

from __future__ import annotations

import itertools
import json
import pickle
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HEAD = """
import collections, datetime, decimal, enum, re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Dict, Generic, List, NewType, Optional, TypeVar, Union
from typing_extensions import Annotated, Literal, NamedTuple, Required, TypeAliasType, TypedDict
from pydantic import (AfterValidator, BaseModel, ConfigDict, Discriminator, Field, PlainSerializer,
    RootModel, Tag, TypeAdapter, computed_field, conint, create_model, field_serializer,
    field_validator, model_validator, validate_call)
from pydantic.dataclasses import dataclass as pydantic_dataclass
import dataclasses
T = TypeVar("T")
B = TypeVar("B", bound="Point")
"""
KINDS = """
def helper(v):
    if v > 90: raise ValueError("too much")
    return v + 1
class Color(enum.Enum):
    RED = "red"
class Point(BaseModel):
    x: int
class Later(BaseModel):
    color: "Optional[Latest]" = None
class Latest(BaseModel):
    color: Color
class Page(BaseModel, Generic[T]):
    items: "list[T]"
class Chain(BaseModel, Generic[T]):
    item: T
    rest: "Optional[Chain[T]]" = None
class Node(BaseModel):
    kids: "list[Node]" = []
class Cat(BaseModel):
    kind: Literal["cat"]
class Dog(BaseModel):
    kind: Literal["dog"]
class Checked(BaseModel):
    a: int
    @field_validator("a")
    @classmethod
    def _less(cls, v): return helper(v)
    @model_validator(mode="after")
    def _even(self): return self if self.a % 2 == 0 else Checked.model_construct(a=0)
    @field_serializer("a")
    def _shown(self, v) -> "str": return f"<{v}>"
    @computed_field
    @property
    def twice(self) -> "int": return self.a * 2
class Camel(BaseModel):
    model_config = ConfigDict(alias_generator=lambda name: name.upper())
    word: int = Field(default_factory=lambda: helper(4))
class Root(RootModel["list[Point]"]): pass
@dataclasses.dataclass
class Data:
    a: int
    b: "list[Point]" = dataclasses.field(default_factory=list)
@pydantic_dataclass
class OwnData:
    a: "Annotated[int, Field(ge=1)]"
class Typed(TypedDict, total=False):
    a: "Required[int]"
    c: "Color"
class Named(NamedTuple):
    a: int
    c: "Optional[Color]" = None
Plain = collections.namedtuple("Plain", "a b")
Number = NewType("Number", int)
class Custom:
    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        from pydantic_core import core_schema
        return core_schema.no_info_after_validator_function(helper, core_schema.int_schema())
Tree = TypeAliasType("Tree", "Union[int, list[Tree]]")
Points = TypeAliasType("Points", "dict[str, Point]")
class Outer(BaseModel):
    class Inner(BaseModel):
        c: "Color"
    i: Inner
"""
# What stands as an annotation, a value as JSON, and one that it refuses.
ANNOTATIONS = [
    ("int", "1", '"a"'),
    ("Point", '{"x": 1}', '{"x": "a"}'),
    ("Color", '"red"', '"green"'),
    ("Later", '{"color": {"color": "red"}}', '{"color": 1}'),
    ("list[Point]", '[{"x": 1}]', "[1]"),
    ("dict[str, Color]", '{"a": "red"}', '{"a": 1}'),
    ("Optional[Point]", "null", "3"),
    ("Union[Cat, Dog]", '{"kind": "dog"}', '{"kind": "cow"}'),
    ("Annotated[Union[Cat, Dog], Field(discriminator='kind')]", '{"kind": "cat"}', "{}"),
    (
        "Annotated[Union[Annotated[Cat, Tag('cat')], Annotated[Dog, Tag('dog')]], "
        "Discriminator(lambda v: v['kind'] if isinstance(v, dict) else v.kind)]",
        '{"kind": "cat"}',
        '{"kind": "cow"}',
    ),
    ("Page[int]", '{"items": [1]}', '{"items": ["a"]}'),
    ("list[Page[Point]]", '[{"items": [{"x": 1}]}]', "[1]"),
    ("Chain[int]", '{"item": 1, "rest": {"item": 2}}', '{"item": 1, "rest": {"item": "a"}}'),
    ("Node", '{"kids": [{}]}', '{"kids": [1]}'),
    ("Dict[str, List[Optional['Node']]]", '{"a": [{}, null]}', '{"a": [1]}'),
    ("Checked", '{"a": 1}', '{"a": 99}'),
    ("Camel", "{}", '{"WORD": "a"}'),
    ("Root", '[{"x": 1}]', "[1]"),
    ("Data", '{"a": 1, "b": [{"x": 1}]}', '{"a": 1, "b": [1]}'),
    ("OwnData", '{"a": 1}', '{"a": 0}'),
    ("Typed", '{"a": 1, "c": "red"}', '{"c": "red"}'),
    ("Named", '[1, "red"]', '["a"]'),
    ("Plain", "[1, 2]", "[1]"),
    ("Number", "3", '"a"'),
    ("Custom", "3", "99"),
    ("Tree", "[1, [2]]", '["a"]'),
    ("Points", '{"a": {"x": 1}}', '{"a": 1}'),
    ("Outer.Inner", '{"c": "red"}', "{}"),
    ("Annotated[int, AfterValidator(lambda v: helper(v)), PlainSerializer(str)]", "1", "99"),
    ("conint(ge=3)", "4", "1"),
    ("Literal['a', Color.RED]", '"red"', '"b"'),
    ("Sequence[Point]", '[{"x": 1}]', "[1]"),
    ("tuple[Point, Color]", '[{"x": 1}, "red"]', "[1, 2]"),
    ("Mapping[str, Point]", '{"a": {"x": 1}}', '{"a": 1}'),
    ("'Optional[list[Point]]'", '[{"x": 1}]', "[1]"),
    ("list['Point']", '[{"x": 1}]', "[1]"),
    ("Annotated['Point', Field(description='d')]", '{"x": 1}', "1"),
    ("create_model('Made', c=(Color, ...))", '{"c": "red"}', "{}"),
]


class Place(NamedTuple):
    """Where an annotation stands (``%s``), and the JSON that has its value there."""

    source: str
    body: str


PLACES = {
    "parameter": Place("def f(v: %s, n: int = 1): return v", '{"v": %s}'),
    "result": Place("def f(v: Any) -> %s: return v", '{"v": %s}'),
    "field": Place("class M(BaseModel):\n    v: %s\ndef f(m: M) -> M: return m", '{"v": %s}'),
    "data": Place(
        "@dataclasses.dataclass\nclass D:\n    v: %s\ndef f(d: D) -> D: return d",
        '{"d": {"v": %s}}',
    ),
    "typed": Place(
        "class D(TypedDict):\n    v: %s\ndef f(d: D) -> D: return d", '{"d": {"v": %s}}'
    ),
    "named": Place("class D(NamedTuple):\n    v: %s\ndef f(d: D) -> D: return d", '{"d": [%s]}'),
    "validated": Place(
        "@validate_call\ndef g(v: %s): return v\ndef f(v: Any): return repr(g(v))", '{"v": %s}'
    ),
    "adapter": Place(
        "A = TypeAdapter(%s)\ndef f(v: Any): return repr(A.validate_python(v))", '{"v": %s}'
    ),
}
FUTURE = "from __future__ import annotations\n"


class Case(NamedTuple):
    """A cell, what the first cell of its notebook begins with, and bodies for its function."""

    name: str
    begin: str
    cell: str
    bodies: tuple[str, ...]


def cases() -> Iterator[Case]:
    """Yield every case; those of a notebook follow each other."""
    for begin, (kind, *values), place in itertools.product(("", FUTURE), ANNOTATIONS, PLACES):
        source, body = PLACES[place]
        bodies = tuple(body % value for value in values)
        name = f"{place}{' (future)' if begin else ''}: {kind}"
        yield Case(name, begin, begin + source.replace("%s", kind), bodies)


def meaning(function: Any, hints: dict[str, Any], bodies: tuple[str, ...]) -> Any:
    """Return schemas and results of a function, or the errors in place of them."""
    from fal_notebook.runner.schema import read_signature

    signature = read_signature(function, hints, False)
    found = [signature.input.json_schema(), signature.output.adapter.json_schema()]
    for body in bodies:
        try:
            args, kwargs = signature.arguments(body.encode())
            value = signature.output.validated(function(*args, **kwargs))
            found.append([repr(value), signature.output.to_json(value).decode()])
        except Exception as error:
            found.append([type(error).__name__, str(error)])
    return re.sub(r" at 0x[0-9a-f]+", "", json.dumps(found))


def capture_all(folder: Path, step: str) -> dict[str, Any]:
    """Define and capture each case, write the payload, and return what it means here."""
    from fal_notebook.payload import _hints, capture

    found, digests = {}, {}
    notebooks = {begin: notebook(begin) for begin in ("", FUTURE)}
    for number, case in itertools.islice(enumerate(cases()), None, None, int(step)):
        main = sys.modules["__main__"] = notebooks[case.begin]
        try:
            exec(compile(case.cell, "<cell>", "exec", dont_inherit=True), vars(main))
            found[case.name] = meaning(main.f, _hints(main.f), case.bodies)
        except Exception:  # what Python or pydantic refuses here is no case
            continue
        payload = capture(main.f)
        (folder / str(number)).write_bytes(payload.content)
        digests[case.name] = payload.digest
    (folder / "digests.json").write_text(json.dumps(digests))
    return found


def notebook(begin: str) -> types.ModuleType:
    """Return a notebook whose first cell was run."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(begin + HEAD + KINDS, "<cell>", "exec", dont_inherit=True), vars(main))
    return main


def load_all(folder: Path) -> dict[str, Any]:
    """Load each payload, and return what it means there."""
    from fal_notebook.runner.envelope import unpack
    from fal_notebook.runner.served import fill_main

    found = {}
    for number, case in enumerate(cases()):
        if (folder / str(number)).exists():
            sys.modules["__main__"] = types.ModuleType("__main__")
            _, pickled = unpack((folder / str(number)).read_bytes())
            try:
                loaded = pickle.loads(pickled)
                fill_main(loaded["function"])
                found[case.name] = meaning(loaded["function"], loaded["hints"], case.bodies)
            except Exception as error:
                found[case.name] = f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    action = {"capture": capture_all, "load": load_all}[sys.argv[1]]
    print(json.dumps(action(Path(sys.argv[2]), *sys.argv[3:])))
