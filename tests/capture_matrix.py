"""A notebook of capture cases, run in a real IPython shell and loaded in another interpreter.

``capture_matrix.py capture FOLDER`` runs the cells, writes one payload per case and prints the
digests; ``capture_matrix.py load FOLDER`` loads each payload, calls it and prints the results.
Only what is installed beside this Python minor is needed: cloudpickle, pydantic and IPython.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """Cells to run, the function to capture, the arguments to call it with, and the result."""

    name: str
    cells: tuple[str, ...]
    arguments: str
    expected: Any
    local_python_modules: tuple[str, ...] = ()
    needs: str = "pydantic"


CASES = (
    Case(
        "set_of_a_class_of_its_own",
        (
            "class Tags(set): pass\nclass Fixed(frozenset): pass\n"
            "tags = {'in': Tags('abcdefgh'), 'fixed': [Fixed('ijklmnop')]}",
            "def tagged() -> str: return ''.join(sorted({*tags['in'], *tags['fixed'][0]}))",
        ),
        "",
        "abcdefghijklmnop",
    ),
    Case(
        "helper_of_an_earlier_cell",
        ("RATE = 3\ndef times(x): return x * RATE", "def helped(x: int) -> int: return times(x)"),
        "7",
        21,
    ),
    Case(
        "pydantic_model",
        (
            "from pydantic import BaseModel, Field, field_validator, ConfigDict\n"
            "from typing import Annotated, Optional",
            "class Point(BaseModel):\n"
            "    model_config = ConfigDict(extra='forbid')\n"
            "    x: int = Field(ge=0)\n"
            "    y: Annotated[int, Field(lt=100)] = 2\n"
            "    @field_validator('x')\n"
            "    @classmethod\n"
            "    def double(cls, v: int) -> int: return v * 2",
            "def on_model(point: Point) -> Point: return Point(x=point['x'], y=5)",
        ),
        "{'x': 4}",
        "x=8 y=5",
    ),
    Case(
        "alias_with_parameters",
        (
            "import sys, typing\n"
            "if sys.version_info >= (3, 12): exec('type Pair[T] = tuple[T, T]')\n"
            "else: Pair = typing.Tuple[typing.TypeVar('T'), int]",
            "def paired(x: int) -> str: return Pair[str].__args__[0].__name__ * x",
        ),
        "2",
        "strstr",
    ),
    Case(
        "type_parameters_of_all_kinds",
        (
            "import sys, typing, typing_extensions\nfrom typing import Any\n"
            "Ts = typing_extensions.TypeVarTuple('Ts')\n"
            "class Held(typing.Generic[typing_extensions.Unpack[Ts]]):\n"
            "    def count(self, *a: typing_extensions.Unpack[Ts]) -> int: return len(a)\n"
            "def called(f: Any, *a: typing_extensions.Unpack[Ts]) -> int: return f(*a)\n"
            "if sys.version_info >= (3, 12): exec('def called[**P](f: typing.Callable[P, int], "
            "*a: P.args, **k: P.kwargs) -> int: return f(*a, **k)')",
            "def parametrised(x: int) -> int: return called(Held().count, x, x)",
        ),
        "3",
        2,
    ),
    Case(
        "alias_that_is_a_part_of_itself",
        (
            "import sys, typing, typing_extensions\nfrom pydantic import TypeAdapter\n"
            "Tree = typing_extensions.TypeAliasType('Tree', 'typing.Union[int, list[Tree]]')\n"
            "if sys.version_info >= (3, 12): exec('type Tree = int | list[Tree]')",
            "def leaves(x: Tree) -> list[str]:\n"
            "    tree = TypeAdapter(Tree)\n"
            "    return [str(tree.validate_python(x)), str(tree.json_schema()['$defs'])[:7]]",
        ),
        "['1', ['2', ['3']]]",
        ["[1, [2, [3]]]", "{'Tree'"],
    ),
    Case(
        "methods_of_the_modules_own_generator",
        ("from random import choice", "def drawn(x: int) -> int: return choice([x])"),
        "4",
        4,
    ),
    Case(
        "cached_property",
        (
            "import functools\nclass Lazy:\n"
            "    def __init__(self, n): self.n = n\n"
            "    @functools.cached_property\n    def double(self): return self.n * 2",
            "lazy = Lazy(3)",
            "def lazily(x: int) -> int: return lazy.double + Lazy(x).double",
        ),
        "2",
        10,
    ),
    Case(
        "singledispatch",
        (
            "import functools\nclass Odd: pass\nclass Told:\n"
            "    @functools.singledispatchmethod\n    def it(self, x): return 'it'\n"
            "    @it.register\n    def _(self, x: str): return 'its ' + x",
            "@functools.singledispatch\ndef told(x): return 'any'\n"
            "@told.register\ndef _(x: int): return f'int {Told().it(x)}'\n"
            "@told.register(list)\ndef _(x): return [told(part) for part in x]\n"
            "@told.register\ndef _(x: Odd): return Told().it('own')",
            "def dispatched(x: int) -> list[str]:\n"
            "    return [*told([x, None, Odd()]), told.__module__, told.__wrapped__(x)]",
        ),
        "2",
        ["int it", "any", "its own", "__main__", "any"],
    ),
    Case(
        "list_and_dict_parameters",
        ("def on_list(xs: list[float], by: dict[str, int]) -> list[float]: return xs + [len(by)]",),
        "[1.5], {'a': 1}",
        [1.5, 1],
    ),
    Case(
        "nested_pydantic_models",
        (
            "class Line(BaseModel):\n    start: Point\n    rest: list['Point'] = []\n"
            "    label: Optional[str] = None",
            "def on_nested(line: Line) -> Line: return Line.model_validate(line)",
        ),
        "{'start': {'x': 1}, 'rest': [{'x': 2}]}",
        "start=Point(x=2, y=2) rest=[Point(x=4, y=2)] label=None",
    ),
    Case(
        "model_with_a_forward_reference",
        (
            "class Early(BaseModel):\n    late: 'Late'\nclass Late(BaseModel):\n    n: int",
            "def forward(x): return Early.model_validate({'late': {'n': x}})",
        ),
        "1",
        "late=Late(n=1)",
    ),
    Case(
        "models_that_hold_each_other_defined_again",
        (
            *2
            * (
                "from typing import List\nclass First(BaseModel):\n    more: List['Second'] = []\n"
                "class Second(BaseModel):\n    more: List[First] = []\nFirst.model_rebuild()",
            ),
            "def mutual(x) -> First: return First.model_validate(x)",
        ),
        "{'more': [{'more': [{}]}]}",
        "more=[Second(more=[First(more=[])])]",
    ),
    Case(
        "generic_pydantic_model",
        (
            "from typing import Generic, TypeVar\nT = TypeVar('T')\n"
            "class Box(BaseModel, Generic[T]):\n    item: T",
            "def boxed(x: int) -> int: return Box[int](item=x).item",
        ),
        "'3'",
        3,
    ),
    Case(
        "closure",
        ("def make(k):\n    def adder(x): return x + k\n    return adder", "closed = make(10)"),
        "5",
        15,
    ),
    Case(
        "globals_of_all_kinds",
        (
            "SETTINGS = {'a': {1, 2, 3}, 'b': [(1.5, None), 'x', b'y'], 3: frozenset({'p', 'q'})}",
            "def total(): return sum(SETTINGS['a']) + len(SETTINGS[3])",
        ),
        "",
        8,
    ),
    Case(
        "enum_and_dataclass",
        (
            "import enum\nfrom dataclasses import dataclass, field\n"
            "class Color(enum.Enum):\n    RED = 1\n    BLUE = 2\n"
            "    @property\n    def shout(self): return self.name + '!'\n"
            "class Level(enum.IntFlag):\n    LOW = 1\n    HIGH = 2",
            "@dataclass(frozen=True)\nclass Job:\n    color: Color\n"
            "    tags: tuple = field(default_factory=tuple)\n"
            "    def text(self): return f'{self.color.shout}{len(self.tags)}'",
            "JOB = Job(Color.BLUE, ('a',))",
            "def tell():\n"
            "    return JOB.text() + str(Color(1) is Color.RED) + str(int(Level.LOW | Level.HIGH))",
        ),
        "",
        "BLUE!1True3",
    ),
    Case(
        "dataclasses_that_pydantic_reads",
        (
            "from dataclasses import KW_ONLY, MISSING, InitVar, fields\n"
            "from typing import ClassVar\nfrom pydantic import TypeAdapter",
            "@dataclass(frozen=True, slots=True)\nclass Spot:\n    x: int\n    y: int = 2",
            "@dataclass(kw_only=True)\nclass Base:\n    scale: float = 1.0",
            "@dataclass\nclass Shape(Base):\n    spot: Spot\n    seed: InitVar[int] = 0\n"
            "    sides: ClassVar[int] = 3\n    tags: list[str] = field(default_factory=list)\n"
            "    _: KW_ONLY\n    name: str = 'n'",
            "def shaped(shape: Shape) -> Shape:\n"
            "    assert fields(Shape)[1].default is MISSING\n"
            "    found = TypeAdapter(Shape).validate_python(shape)\n"
            "    return str((found, Shape(Spot(1))))",
        ),
        "{'spot': {'x': 1}, 'tags': ['a']}",
        "(Shape(scale=1.0, spot=Spot(x=1, y=2), tags=['a'], name='n'), "
        "Shape(scale=1.0, spot=Spot(x=1, y=2), tags=[], name='n'))",
    ),
    Case(
        "classes_with_super_and_slots",
        (
            "class Base:\n    __slots__ = ('n',)\n    def __init__(self, n): self.n = n\n"
            "    def value(self): return self.n",
            "class Child(Base):\n    def value(self): return super().value() + 1\n"
            "    @staticmethod\n    def unit(): return 1\n"
            "    @classmethod\n    def one(cls): return cls(cls.unit())\n"
            "    @property\n    def twice(self): return self.value() * 2",
            "def inherit(): return Child.one().twice",
        ),
        "",
        4,
    ),
    Case(
        "async_function",
        (
            "import asyncio as aio",
            "async def later(x):\n    await aio.sleep(0)\n    return times(x)",
        ),
        "2",
        6,
    ),
    Case("generator", ("def count(n: int):\n    for i in range(n): yield times(i)",), "2", [0, 3]),
    Case(
        "async_generator",
        (
            "async def acount(n: int):\n"
            "    for i in range(n):\n        await aio.sleep(0)\n        yield i",
        ),
        "2",
        [0, 1],
    ),
    Case(
        "aliased_imports",
        (
            "import xml.etree.ElementTree as ET, json as j, os.path\nfrom math import sqrt as root",
            "def aliased(x):\n"
            "    return [ET.fromstring(x).tag, j.loads('2'), root(4), os.path.basename('a/b')]",
        ),
        "'<t/>'",
        ["t", 2, 2.0, "b"],
    ),
    Case(
        "decorated",
        (
            "import functools\n"
            "def plus_one(f):\n    @functools.wraps(f)\n"
            "    def inner(*a, **k): return f(*a, **k) + 1\n"
            "    return inner",
            "@plus_one\ndef decorated(x: int = 1, *, y: int = 2) -> int: return x + y",
        ),
        "4",
        7,
    ),
    Case("open_as_the_shell_guards_it", ("def reads(path): return open(path).name",), "0", 0),
    Case("partial", ("part = functools.partial(times, 9)",), "", 27),
    Case(
        "cached_function",
        (
            "@functools.lru_cache(maxsize=8)\ndef square(x): return x * x",
            "def cached(x): return square(x)",
        ),
        "5",
        25,
    ),
    Case(
        "callable_object",
        (
            "class Model:\n    def __init__(self, k): self.k = k\n"
            "    def __call__(self, x: int) -> int: return x * self.k",
            "model_object = Model(6)",
        ),
        "2",
        12,
    ),
    Case(
        "class_body_inside_a_function",
        (
            "def inner_class(x):\n"
            "    class Inner(Point):\n        again: Point\n        rate: int = RATE\n"
            "    return Inner(x=x, again=Point(x=x)).rate",
        ),
        "1",
        3,
    ),
    Case(
        "named_tuple_newtype_and_alias",
        (
            "from collections import namedtuple\nfrom typing import NewType\n"
            "Pair = namedtuple('Pair', 'a b')\nId = NewType('Id', int)",
            "def pair(x: Id) -> list: return [Pair(x, 2).b, Id(x)]",
        ),
        "1",
        [2, 1],
    ),
    Case(
        "mutual_recursion",
        (
            "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)",
            "def parity(n): return even(n)",
        ),
        "10",
        True,
    ),
    Case(
        "local_module",
        (
            "import matrix_helpers as mh\nfrom matrix_helpers import Counter",
            "def local(x): return [mh.shift(x), Counter().n]",
        ),
        "1",
        [101, 1],
        ("matrix_helpers",),
    ),
    Case(
        "local_module_imported_inside",
        (
            "def lazy(x):\n    import matrix_helpers\n"
            "    matrix_helpers.bump(); matrix_helpers.bump()\n"
            "    return [matrix_helpers.calls, matrix_helpers.shift(x)]",
        ),
        "2",
        [2, 102],
        ("matrix_helpers",),
    ),
    Case(
        "local_package",
        (
            "import matrix_package.sub",
            "def packaged(x):\n    from matrix_package.sub import through\n"
            "    return through(x) + matrix_package.BASE",
        ),
        "1",
        1011,
        ("matrix_package",),
    ),
    Case(
        "trained_model",
        (
            "from sklearn.datasets import load_digits\n"
            "from sklearn.linear_model import LogisticRegression\n"
            "X, y = load_digits(return_X_y=True)\n"
            "clf = LogisticRegression(max_iter=300).fit(X[:500] / 16, y[:500])",
            "def classify(pixels: list[float]) -> int: return int(clf.predict([pixels])[0])",
        ),
        "[0.0] * 64",
        None,
        needs="sklearn",
    ),
    Case(
        "annotations_as_strings",
        (
            "from __future__ import annotations\n"
            "class Leaf(BaseModel):\n    n: int\n"
            "class Tree(BaseModel):\n    leaves: list[Leaf]\n    child: Tree | None = None\n",
            "def grow(tree: Tree, *, scale: int = 2) -> Leaf:\n"
            "    return Leaf(n=scale * sum(l.n for l in Tree.model_validate(tree).leaves))",
        ),
        "{'leaves': [{'n': 2}, {'n': 3}], 'child': {'leaves': []}}",
        "n=10",
    ),
)

MODULES = {
    "matrix_helpers.py": (
        "calls = 0\nOFFSET = 100\n"
        "def shift(x): return x + OFFSET\n"
        "def bump():\n    global calls\n    calls += 1\n"
        "class Counter:\n    n = 1\n"
    ),
    "matrix_package/__init__.py": "BASE = 1000\n",
    "matrix_package/sub.py": (
        "import matrix_package\nfrom . import other\n"
        "def through(x):\n    from .other import ten\n"
        "    return x + ten() + 0 * matrix_package.BASE\n"
    ),
    "matrix_package/other.py": "def ten(): return 10\n",
}


def available() -> list[Case]:
    """Return the cases whose library is there."""
    return [case for case in CASES if importlib.util.find_spec(case.needs)]


def capture_all(folder: Path) -> dict[str, str]:
    """Run all cells in one shell, write the payloads, and return their digests."""
    shell = _shell()
    for name, text in MODULES.items():
        (folder / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "lib" / name).write_text(text)
    sys.path.insert(0, str(folder / "lib"))
    return {case.name: _capture(shell, case, folder) for case in available()}


def load_all(folder: Path) -> dict[str, Any]:
    """Load the payloads without their notebook, call them, and return the results."""
    return {case.name: _call(case, folder) for case in available()}


def _shell() -> Any:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    return InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))


def _capture(shell: Any, case: Case, folder: Path) -> str:
    from fal_notebook.cell import analyse
    from fal_notebook.payload import capture

    for cell in case.cells:
        shell.run_cell(cell).raise_error()
    last = case.cells[-1]
    name = analyse(last).entry if "def " in last else last.split(" = ")[0]
    payload = capture(shell.user_ns[name], local_python_modules=case.local_python_modules)
    (folder / case.name).write_bytes(payload.content)
    return payload.digest


def _call(case: Case, folder: Path) -> Any:
    from fal_notebook.runner.envelope import unpack

    manifest, pickled = unpack((folder / case.name).read_bytes())
    from fal_notebook.runner.schema import read_signature

    loaded = pickle.loads(pickled)
    sys.modules.update(loaded["modules"])
    function = loaded["function"]
    read_signature(function, inspect.get_annotations(function, eval_str=True), False)
    result = eval(f"f({case.arguments})", {"f": loaded["function"]})
    if manifest["kind"] in ("async", "asyncgen"):
        result = asyncio.run(_finish(result))
    result = list(result) if manifest["kind"] == "generator" else result
    for name in loaded["modules"]:
        sys.modules.pop(name)
    plain = isinstance(result, (int, float, str, list, type(None)))
    return result if plain else str(result)


async def _finish(result: Any) -> Any:
    return [value async for value in result] if inspect.isasyncgen(result) else await result


if __name__ == "__main__":
    action = {"capture": capture_all, "load": load_all}[sys.argv[1]]
    # The cells' shell takes the place of this __main__, so that its module is a real one.
    print(json.dumps(action(Path(sys.argv[2]))))
