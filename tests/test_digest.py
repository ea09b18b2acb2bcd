"""The digest: equal for what means the same, different for what does not, in every process."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import typing
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from cells import COUNTER
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from runner_bench import define, notebook
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import fal_notebook
from fal_notebook.payload import capture
from fal_notebook.payload.digest import digest_of
from fal_notebook.payload.sources import source_of
from fal_notebook.runner.envelope import unpack


def cell(source: str, **names: Any) -> dict[str, Any]:
    namespace = {"__name__": "__main__", **names}
    exec(compile(source, "<string>", "exec", dont_inherit=True), namespace)
    return namespace


def of(source: str, name: str = "f", **names: Any) -> str:
    return digest_of(cell(source, **names)[name])


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
)


DISPATCHED = """
import functools, decimal, fractions
@functools.singledispatch
def told(x): return "any"
@told.register({kind})
def _(x): return {answer}
def f(): return told(1)
"""


def test_implementations_of_a_dispatcher_count() -> None:
    kinds = ("decimal.Decimal", "fractions.Fraction")
    sources = [DISPATCHED.format(kind=kind, answer=n) for kind in kinds for n in (1, 2)]
    assert [of(source) for source in sources] == [of(source) for source in sources]
    assert len({of(source) for source in sources}) == 4


@given(st.lists(st.text() | st.integers() | st.tuples(st.integers(), st.text()), unique=True))
def test_a_set_has_no_order_and_a_dict_has_its_own(keys: list[Any]) -> None:
    backwards = keys[::-1]
    assert digest_of(set(keys)) == digest_of(set(backwards))
    for made in (lambda key: [key], lambda key: 1):
        forth, back = ({key: made(key) for key in order} for order in (keys, backwards))
        assert (digest_of(forth) == digest_of(back)) == (list(forth) == list(back))


def test_one_list_twice_is_not_two_lists() -> None:
    one = [1]
    assert digest_of([one, one]) == digest_of(copy.deepcopy([one, one]))
    assert digest_of([one, one]) != digest_of([one, [1]]) == digest_of([[1], [1]])
    text = "V = [1]\nW = {}\ndef f(): return V, W"
    assert of(text.format("V")) == of(text.format("V")) != of(text.format("[1]"))


def test_variables_that_functions_share_are_not_those_of_each() -> None:
    shared = f"{COUNTER}def f():\n    inc()\n    return get()"
    each = shared.replace("= made()", "= made()[0], made()[1]")
    assert of(shared) == of(shared) != of(each)


def test_an_import_from_the_future_in_another_cell_changes_nothing() -> None:
    source, later = "def f(x): return x", "from __future__ import annotations\n"
    assert of(source) == of(later + source)
    annotated = source.replace("x)", "x: int)")
    assert of(annotated) != of(annotated.replace("int", "str"))


def test_an_adapter_is_its_type() -> None:
    one, same, other = (TypeAdapter(kind) for kind in (list[int], list[int], list[str]))
    assert digest_of(one) == digest_of(same) != digest_of(other)


def test_attributes_have_an_order_which_code_may_go_by() -> None:
    one, other = SimpleNamespace(a=1, b=[2]), SimpleNamespace(b=[2], a=1)
    assert repr(one) != repr(other)
    assert digest_of(one) == digest_of(copy.deepcopy(one)) != digest_of(other)


@given(PLAIN)
def test_an_equal_copy_has_the_same_digest(value: Any) -> None:
    assert digest_of(value) == digest_of(pickle.loads(pickle.dumps(value)))


@given(PLAIN, PLAIN)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    if repr(one) != repr(other):
        assert digest_of([one]) != digest_of([other]) or one == other


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        ("a", b"a"),
        ([1], (1,)),
        ({1}, frozenset({1})),
        ([], None),
        ({}, []),
        ({"a": 1}, {"a": 2}),
        ([[1], 2], [[1, 2]]),
        (np.zeros(4), np.zeros((2, 2))),
        (np.zeros(2, "f4"), np.zeros(1, "f8")),
        (np.array(["a"], object), np.array(["b"], object)),
        (np.float32(1), np.float64(1)),
        (defaultdict(int), defaultdict(float)),
        (OrderedDict(a=1), {"a": 1}),
        (range(3), range(4)),
        (print, len),
        (os, sys),
    ],
)
def test_values_of_another_kind_or_shape_differ(one: Any, other: Any) -> None:
    assert digest_of(one) != digest_of(other)
    assert digest_of([one, 1j]) != digest_of([other, 1j])
    assert digest_of(one) == digest_of(one)


def test_arrays_hash_by_their_values_and_their_memory_order() -> None:
    array = np.arange(12).reshape(3, 4)
    assert digest_of(array) != digest_of(np.asfortranarray(array))
    assert digest_of(array) == digest_of(array.copy())
    assert digest_of(array[:, ::2]) == digest_of(array[:, ::2].copy())
    times = np.array(["2024-01-01"], "M8[s]")
    assert digest_of(times) == digest_of(times.copy())
    assert digest_of(np.zeros(0)) == digest_of(np.zeros(0))
    assert digest_of(np.array(["", ""])) == digest_of(np.array(["", ""]))


def test_padding_of_records_is_left_out() -> None:
    kind = np.dtype([("a", "u1"), ("b", "f8")], align=True)
    one, other = (np.frombuffer(bytes([fill] * 32), "u1").copy().view(kind) for fill in (0, 7))
    other["a"], other["b"] = one["a"], one["b"]
    assert digest_of(one) == digest_of(other)
    other["b"][1] = 2
    assert digest_of(one) != digest_of(other)


def test_cycles_end() -> None:
    def ring(n: int) -> list[Any]:
        values: list[Any] = [n]
        values.append({"me": values})
        return values

    assert digest_of(ring(1)) == digest_of(ring(1))
    assert digest_of(ring(1)) != digest_of(ring(2))


def test_what_cannot_be_hashed_counts_as_changed() -> None:
    lock = threading.Lock()
    assert digest_of([lock]) != digest_of([lock])


HELPED = "A = {a}\ndef g(x): return x + A\ndef f(x={d}): return g(x)"


def test_a_function_changes_with_all_that_it_uses() -> None:
    base = of(HELPED.format(a=1, d=1))
    assert base == of(HELPED.format(a=1, d=1))
    assert base == of("unused = 5\n\n" + HELPED.format(a=1, d=1)), (
        "lines and other names are not it"
    )
    assert base != of(HELPED.format(a=2, d=1))
    assert base != of(HELPED.format(a=1, d=2))
    assert base != of(HELPED.format(a=1, d=1).replace("x + A", "x - A"))


MODEL = "from pydantic import BaseModel, Field, field_validator as check\nclass M(BaseModel):\n "
METHOD = " \0classmethod\n def v(cls, x): return x\n"
CHANGES = [
    ("def f(): return @", "1", "2"),
    ("def f(): return @", "a", "b"),
    ("def f(x): return lambda: @", "x", "-x"),
    ("def f(x: @): pass", "int", "float"),
    ("def f(x): return x in {1, @}", "2", "3"),
    ("def m(k):\n def g(): return k\n return g\nf = m(@)", "1", "2"),
    ("class C:\n x = @\ndef f(): C", "1", "2"),
    ("class C:\n def m(self): return @\ndef f(): C", "1", "2"),
    ("class C(@): pass\ndef f(): C", "int", "str"),
    ("class C:\n \0property\n def p(self): return @\ndef f(): C", "1", "2"),
    ("import enum\nclass E(enum.Enum):\n A = @\ndef f(): E", "1", "2"),
    ("import enum\nclass E(enum.Enum):\n A = 1\n B = 2\nv = E.@\ndef f(): v", "A", "B"),
    ("import dataclasses as d\n\0d.dataclass\nclass D:\n x: int = @\ndef f(): D", "1", "2"),
    ("from collections import namedtuple\nN = namedtuple('N', '@')\ndef f(): N", "a b", "a c"),
    ("from typing import TypeVar\nT = TypeVar('T', bound=@)\ndef f(): T", "int", "str"),
    (MODEL + "x: @\ndef f(): M", "int", "float"),
    (MODEL + "x: int = Field(ge=@)\ndef f(): M", "1", "2"),
    (MODEL + "x: int = Field(1, alias=@)\ndef f(): M", "'a'", "'b'"),
    (MODEL + "model_config = {'extra': @}\ndef f(): M", "'forbid'", "'allow'"),
    (MODEL + f"x: int\n \0check('x', mode=@)\n{METHOD}def f(): M", "'after'", "'before'"),
]


@pytest.mark.parametrize(("source", "one", "other"), CHANGES)
def test_a_change_of_code_changes_the_digest(source: str, one: str, other: str) -> None:
    before, after = (source.replace("@", x).replace("\0", "@") for x in (one, other))
    assert of(before, a=1, b=2) == of(before, a=1, b=2)
    assert of(before, a=1, b=2) != of(after, a=1, b=2)


def test_mutual_recursion_is_hashed() -> None:
    source = "def f(n): return g(n)\ndef g(n): return n and f(n - {k})"
    assert of(source.format(k=1)) == of(source.format(k=1))
    assert of(source.format(k=1)) != of(source.format(k=2))


def test_a_rebuilt_pydantic_model_is_the_same() -> None:
    source = "from pydantic import BaseModel\nclass M(BaseModel):\n x: int\ndef f(): return M"
    names = cell(source)
    before = digest_of(names["f"])
    names["M"](x=1).model_dump_json()
    names["M"].model_json_schema()
    assert digest_of(names["f"]) == before


def trained(seed: int, samples: int = 300) -> Any:
    pixels, labels = load_digits(return_X_y=True)
    forest = RandomForestClassifier(5, random_state=seed)
    return forest.fit(pixels[:samples], labels[:samples])


PREDICT = "def predict(x: list) -> int: return int(model.predict([x])[0])"


USED = """
import abc, attrs, collections, dataclasses, enum, typing
import pydantic, pydantic.dataclasses

class Plain:
    def __init__(self, a=1): self.a = a
class Slots:
    __slots__ = ("a",)
    def __init__(self, a=1): self.a = a
@dataclasses.dataclass
class Data:
    a: int = 1
@pydantic.dataclasses.dataclass
class Checked:
    a: int = 1
class Model(pydantic.BaseModel):
    a: int = 1
    data: Data = Data()
class Named(typing.NamedTuple):
    a: int = 1
class Colour(enum.Enum):
    RED = 1
class Base(abc.ABC):
    a = 1
class Derived(Base): pass
@typing.runtime_checkable
class Shape(typing.Protocol):
    a: int
    def area(self): ...
T = typing.TypeVar("T")
class Square(Shape):
    a = 2
    def area(self): return self.a
class Private(pydantic.BaseModel):
    _p: int = pydantic.PrivateAttr(3)
    more: "Private | None" = None
class Generic(typing.Generic[T]):
    def __init__(self, a=1): self.a = a
@attrs.define
class Attrs:
    a: int = 1
@attrs.frozen
class Frozen:
    a: int = 1
class Error(Exception):
    def __init__(self, a=1): super().__init__(a)

def make():
    kinds = (Plain, Slots, Data, Checked, Model, Named, Derived, Square, Private, Attrs, Frozen)
    return [*(kind() for kind in (*kinds, Generic[int], Error)), Colour.RED]
def f():
    return make(), Shape, Base
"""


def test_classes_that_are_used_stay_the_same() -> None:
    space = cell(USED)
    before = digest_of(space["f"])
    for made in space["make"]():
        copy.copy(made)
        copy.deepcopy(made)
        made.__reduce_ex__(2)
        isinstance(made, (space["Shape"], space["Base"]))
        inspect.signature(type(made))
        repr(made), hash(type(made)), made == copy.copy(made)
    assert digest_of(space["f"]) == before


HINTS = """
import functools
class Node:
    below: list["Node"]
class Lazy:
    def __init__(self): self.n = 1
    @functools.cached_property
    def found(self): return self.n + 1
lazy = Lazy()
"""
DRAWS = """
import random
from random import choice
from numpy.random import rand
from scipy.stats import norm
def f():
    return choice([1, 2]), rand(), norm.rvs(), random.random()
"""


def test_a_generator_of_the_notebook_is_a_value() -> None:
    one, same, other = (np.random.default_rng(seed) for seed in (1, 1, 2))
    assert digest_of(one) == digest_of(one) == digest_of(same) != digest_of(other)
    one.random()
    assert digest_of(one) != digest_of(same)


def test_the_generators_of_a_process_are_no_values() -> None:
    draws = cell(DRAWS)
    before = digest_of(draws["f"])
    draws["f"]()
    assert digest_of(draws["f"]) == before
    own = [random.Random(seed) for seed in (1, 2)]
    assert digest_of(own[0]) != digest_of(own[1])
    assert digest_of(own[0].choice) != digest_of(own[1].choice)


def _trees() -> dict[str, KNeighborsClassifier]:
    features, labels = load_digits(return_X_y=True)
    kinds = ("kd_tree", "ball_tree")
    return {k: KNeighborsClassifier(3, algorithm=k).fit(features[:99], labels[:99]) for k in kinds}


def test_values_that_are_used_stay_the_same() -> None:
    frame = pd.DataFrame(
        {
            "when": pd.to_datetime(["2020-01-01"] * 3),
            "count": pd.array([1, None, 2], dtype="Int64"),
            "kind": pd.Categorical(["q", "r", "q"]),
        }
    ).set_index("kind")
    trees, masked = _trees(), np.ma.masked_array([1, 2], [0, 1])
    days = pd.Series([1, 2, 3], pd.date_range("2020", periods=3, tz="Europe/Berlin"))
    sparse, hints = scipy.sparse.csr_matrix(np.eye(3)), cell(HINTS)
    others = digest_of(days), digest_of(sparse), digest_of(hints["Node"]), digest_of(hints["lazy"])
    days["2020-01-01"], days.index[0], sparse @ sparse, sparse.max()
    typing.get_type_hints(hints["Node"], hints), hints["lazy"].found
    assert others == (
        *(digest_of(days), digest_of(sparse)),
        *(digest_of(hints["Node"]), digest_of(hints["lazy"])),
    )
    before = digest_of(frame), digest_of(trees), digest_of(masked)
    frame.loc["q"], frame.describe(), frame.index.is_unique, repr(frame)
    for tree in trees.values():
        tree.predict(np.zeros((5, 64)))
    repr(masked)
    assert (digest_of(frame), digest_of(trees), digest_of(masked)) == before
    frame.iloc[0, 1], masked[0], trees["kd_tree"].n_neighbors = 5, 7, 4
    after = digest_of(frame), digest_of(trees), digest_of(masked)
    assert not set(after) & set(before)
    assert digest_of(np.ma.masked_array([1], fill_value=3)) != digest_of(np.ma.masked_array([1]))


def test_a_retrained_model_is_a_change_and_an_identical_one_is_not() -> None:
    first, same, other = (
        capture(cell(PREDICT, model=model)["predict"]).digest
        for model in (trained(1), trained(1), trained(2))
    )
    assert first == same
    assert first != other


def test_an_address_that_an_object_remembers_is_no_change() -> None:
    # As scikit-learn's vectorizers do, to notice that their list of words was replaced.
    source = """
class Remembers:
    def __init__(self, words, other=None):
        self.words = words
        self.seen = id(words) if other is None else other
value = Remembers(["a"])
def f(): return value
"""
    alive = cell(source)  # so that the other one gets another address
    once = digest_of(alive["f"])
    assert of(source) == once
    assert of(source.replace('["a"]', '["b"]')) != once
    assert of(source.replace("id(words) if", "5 if")) != once


def test_options_given_as_identity_take_part() -> None:
    function = cell("def f(): return 1")["f"]
    one = capture(function, identity={"options": {"keep_alive": 10, "x": [1]}})
    assert (
        one.digest == capture(function, identity={"options": {"x": [1], "keep_alive": 10}}).digest
    )
    assert (
        one.digest != capture(function, identity={"options": {"keep_alive": 11, "x": [1]}}).digest
    )
    assert one.manifest["digest"] == one.digest


def test_a_local_module_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = []
    for number in (1, 1, 2):
        (tmp_path / "digested_module.py").write_text(f"def one(): return {number} + {number}00\n")
        sys.modules.pop("digested_module", None)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        function = cell("import digested_module as d\ndef f(): return d.one()")["f"]
        digests.append(capture(function, local_python_modules=["digested_module"]).digest)
    sys.modules.pop("digested_module")
    assert digests[0] == digests[1] != digests[2]


IN_ANOTHER_PROCESS = """
import attrs, enum, numpy as np
from dataclasses import dataclass
from pydantic import BaseModel
from fal_notebook.payload import capture
WORDS = {"alpha", "beta", "gamma", ("x", 1), frozenset({"p", "q", "r"})}
TABLE = {w: {w} for w in ("one", "two", "three")}
class Color(enum.Enum):
    RED = {"a", "b", "c"}
@dataclass
class Job:
    tags: frozenset
    array: object
    def size(self):
        self.extra = 1; self.more = 2; self.other = 3
        return len(self.tags)
class Model(BaseModel):
    tags: set[str] = {"x", "y", "z"}
@attrs.frozen
class Frozen:
    a: int = 1
JOB = Job(frozenset("abcdef"), np.arange(6).reshape(2, 3).T)
def f(x, kind=Color.RED):
    return x in {"k", "l", "m"}, WORDS, TABLE, JOB.size(), Model(), Frozen()
print(capture(f).digest)
"""


def test_the_digest_is_the_same_in_processes_with_other_hash_seeds(tmp_path: Path) -> None:
    script = tmp_path / "cell.py"
    script.write_text(IN_ANOTHER_PROCESS)
    package = str(Path(fal_notebook.__file__).parent.parent)
    digests = set()
    for seed in ("0", "1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": package}
        command = [sys.executable, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout)
    assert len(digests) == 1


def test_a_long_list_is_hashed_fast() -> None:
    numbers = list(range(1_000_000))
    start = time.perf_counter()
    digest_of(numbers)
    generic = time.perf_counter()
    digest_of([(n,) for n in numbers[:10_000]])
    # A million plain numbers cost about as much as ten thousand objects do one by one.
    assert generic - start < 40 * (time.perf_counter() - generic)


def test_a_model_hashes_without_importing_anything_for_it() -> None:
    model = LogisticRegression().fit(np.eye(4), [0, 1, 0, 1])
    before = set(sys.modules)
    digest_of(model)
    assert set(sys.modules) == before


@pytest.mark.parametrize("default", ["field", "frozenset({'one', 'two', 'three'})", "object"])
def test_a_dataclass_is_no_other_for_how_its_defaults_are_shown(default: str) -> None:
    source = (
        "from dataclasses import dataclass\ndef field(): pass\n"
        f"@dataclass\nclass Held:\n    value: object = {default}\n"
    )
    found = set()
    for seed in "123":
        script = (
            f"import linecache; source = {source!r}\n"
            "linecache.cache['<c>'] = (len(source), None, source.splitlines(True), '<c>')\n"
            "exec(compile(source, '<c>', 'exec'))\n"
            "from fal_notebook.payload.digest import digest_of; print(digest_of(Held))"
        )
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


@pytest.mark.parametrize("name", ["__name__", "__qualname__", "__doc__"])
def test_what_a_function_says_of_itself_counts(name: str) -> None:
    found = cell("def tool(x): 'old'\ndef f(): return tool")
    before = digest_of(found["f"])
    setattr(found["tool"], name, "other")
    assert digest_of(found["f"]) != before


SETS = """
class Tags(set): pass
class Slotted(frozenset): __slots__ = ("note",)
class Own(set):
    def __reduce__(self): return Own, (sorted(self),)
tags, slotted, own = Tags("abc"), Slotted("abc"), Own("abc")
tags.note = slotted.note = 1
"""


@pytest.mark.parametrize("name", ["tags", "slotted", "own"])
def test_a_set_of_a_class_of_its_own_has_no_order(name: str) -> None:
    found = cell(SETS)
    value, kind = found[name], type(found[name])
    again = kind("cba")
    again.__dict__.update(vars(value)) if hasattr(value, "__dict__") else None
    if name == "slotted":
        again.note = 1
    assert digest_of(again) == digest_of(value)
    assert digest_of(kind("abd")) != digest_of(value)
    assert digest_of(set("abc")) != digest_of(value)
    if name == "tags" or (name == "slotted" and sys.version_info >= (3, 11)):  # else not pickled
        again.note = 2
        assert digest_of(again) != digest_of(value)


CHANGES = {
    "an attribute with underscores": ("def h(): pass\nh.__version__ = 1", "h.__version__ = 2"),
    "a signature": ("def h(): pass", "h.__signature__ = inspect.signature(lambda y: 1)"),
    "an attribute of a method": (
        "class h:\n    def go(self): pass\nh.go.__version__ = 1",
        "h.go.__version__ = 2",
    ),
    "a module of the notebook's": (
        "h = types.ModuleType('h_mod'); exec('t = 1', vars(h))",
        "exec('t = 2', vars(h))",
    ),
    "an attribute of a member": (
        "class h(enum.Enum): A = 1\nh.A.mass = 1",
        "h.A.mass = 2",
    ),
    "a registered class": ("class h(abc.ABC): pass", "h.register(int)"),
    "the flags of an array": ("h = np.zeros(3)", "h.flags.writeable = False"),
    "a cached function's attribute": ("h = functools.cache(lambda x: x)", "h.note = 3"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_place_changes_the_digest(change: str) -> None:
    before, then = CHANGES[change]
    source = "import abc, enum, functools, inspect, types, numpy as np\n"
    found = cell(f"{source}{before}\ndef f(): return h")
    digest = digest_of(found["f"])
    assert digest == digest_of(found["f"])
    exec(then, found)
    assert digest_of(found["f"]) != digest


def test_an_alias_of_a_member_counts() -> None:
    one, other = "class h(enum.Enum):\n    A = 1", "class h(enum.Enum):\n    A = 1\n    B = 1"
    both = [of(f"import enum\n{source}\ndef f(): return h") for source in (one, other)]
    assert both[0] != both[1]


@pytest.mark.parametrize(
    "made", ["P()", "np.zeros(3)", "deque()", "SimpleNamespace()", "defaultdict(int)", "{}"]
)
def test_one_object_twice_is_not_two_objects(made: str) -> None:
    source = (
        "import numpy as np\nfrom collections import deque, defaultdict\n"
        "from types import SimpleNamespace\nclass P: pass\n"
    )
    one, two = f"one = {made}; h = [one, one]", f"h = [{made}, {made}]"
    digests = [of(f"{source}{values}\ndef f(): return h") for values in (one, two)]
    assert digests[0] != digests[1]


def test_the_environment_is_each_process_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOUND", "of the kernel, and no runner's business")
    used = "from os import environ\ndef f(x: int = NotImplemented): return environ.get('FOUND')"
    with notebook():
        function = define(used)["f"]
        before = capture(function)
        monkeypatch.setenv("FOUND", "another")
        assert capture(function).digest == before.digest
    assert b"no runner's business" not in before.content
    assert pickle.loads(unpack(before.content)[1])["function"]() == "another"


def test_a_module_that_was_edited_and_imported_again_has_its_new_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "edited_module.py"
    found = []
    for text in ("def g(): return 10\n", "# one more line\ndef g(): return 200\n"):
        path.write_text(text)
        importlib.invalidate_caches()
        sys.modules.pop("edited_module", None)
        module = importlib.import_module("edited_module")
        found.append((module.g, source_of(module.g), source_of(module)))
    first, second = found
    assert (first[1], second[1]) == ("def g(): return 10\n", "def g(): return 200\n")
    assert second[2] == path.read_text()
    assert source_of(first[0]) == first[1], "what was not imported again is what it was"
    sys.modules.pop("edited_module")
