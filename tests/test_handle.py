"""The handle: calls, generators, exceptions, questions, and how it travels."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest
from serving import interrupted_after

from fal_notebook.exceptions import (
    DeployError,
    FalNotebookError,
    GatewayError,
    NotFoundError,
    OptionError,
    RemoteError,
    UnpicklableError,
)
from fal_notebook.handle import Handle


def deploy(shell: Any, body: str, line: str = "wait=true") -> Handle:
    shell.run(f"%%fal_function {line}\n{body}")
    return next(v for v in reversed(shell.ip.user_ns.values()) if isinstance(v, Handle))


# --- calls ----------------------------------------------------------------------------------
def test_arguments_of_every_kind_arrive(shell) -> None:
    call = deploy(shell, "def f(a, /, b, *more, c=0, **named): return a, b, more, c, named")
    assert call(1, 2, 3, c=4, d=5) == (1, 2, (3,), 4, {"d": 5})


def test_an_async_function_returns_its_value(shell) -> None:
    call = deploy(
        shell, "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return -x"
    )
    assert call(3) == -3


def test_fifty_megabytes_travel_there_and_back(shell) -> None:
    call = deploy(shell, "def f(x): return x + 1")
    array = np.zeros(50_000_000 // 8)
    assert float(call(array).sum()) == array.size


def test_a_body_above_the_limit_is_refused_in_one_sentence(shell) -> None:
    call = deploy(shell, "def f(x): return len(x)")
    with pytest.raises(GatewayError, match=r"413.*max_body=104857600"):
        call(bytes(105_000_000))


def test_recursion_stays_inside_the_runner(shell) -> None:
    call = deploy(shell, "def fact(n): return n * fact(n - 1) if n else 1")
    assert call(10) == 3628800


def test_a_class_of_the_notebook_is_the_same_class_when_it_comes_back(shell) -> None:
    shell.run("from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int")
    call = deploy(shell, "def f(p): return Point(p.x + 1)")
    assert call(shell["Point"](1)) == shell["Point"](2)


COLORS = """
import enum
FACTOR = 1
class Color(enum.Enum):
    R = {}
    def times(self): return self.value * FACTOR
"""


def test_a_class_whose_cell_ran_again_is_still_the_runners(shell) -> None:
    shell.run(COLORS.format(1))
    call = deploy(shell, "def f(c: Color): return c is Color.R, Color.R, c")
    for _ in range(2):
        assert call(shell["Color"].R) == (True, shell["Color"].R, shell["Color"].R)
        shell.run(COLORS.format(1))
    shell.run(COLORS.format(2))
    same, made, sent = call(shell["Color"].R)
    assert (same, sent) == (False, shell["Color"].R)
    assert type(made) is not shell["Color"]


def test_an_answer_leaves_the_classes_of_the_notebook_alone(shell) -> None:
    shell.run("told = []\nclass Base:\n    def __init_subclass__(cls): told.append(cls)")
    shell.run("FACTOR = 1\nclass Sub(Base):\n    def factor(self): return FACTOR")
    call = deploy(shell, "def f(x): return Sub() if x else len(told)")
    subclasses = call(None)
    back = call(shell["Sub"]())
    shell.run("FACTOR = 2")
    assert back.factor() == shell["Sub"]().factor() == 2
    assert (len(shell["told"]), call(None)) == (1, subclasses)


ENUMS = """
import enum
class Planet(enum.Enum):
    EARTH = (6, 4)
    MARS = (1, 2)
    def __init__(self, mass, radius): self.mass = mass
class Alias(enum.Enum): X = 1; Y = 1
class Coord(bytes, enum.Enum):
    def __new__(cls, value, label):
        made = bytes.__new__(cls, [value])
        made._value_, made.label = value, label
        return made
    PX = (0, "x")
    PY = (1, "y")
class Text(str, enum.Enum):
    def __new__(cls, value):
        made = str.__new__(cls, value.upper())
        made._value_ = value
        return made
    Q = "q"
class Counted(enum.Enum):
    def __new__(cls, *_):
        made = object.__new__(cls)
        made._value_ = len(cls.__members__) + 1
        return made
    A = ()
    B = ()
class Flags(enum.Flag): A = 1; B = 2; C = 3
class Later(enum.Enum): P = 1
Later.P.more = [Later.P]
class Op(enum.Enum):
    NONE = 0
    if hasattr(enum, "member"):  # since Python 3.11
        ADD = enum.member(lambda a, b: a + b)
        @enum.member
        def MUL(a, b): return a * b
    def calls(self, *given): return self.value and self.value(*given)
def told():
    return (
        Planet.EARTH.mass, Planet((1, 2)).name, Coord.PY.label, bytes(Coord.PY), Coord(1).name,
        list(Alias.__members__), Alias["Y"].name, str.lower(Text.Q), Text("q").name,
        Counted.B.value, (Flags.A | Flags.B) is Flags.C, Later.P.more[0] is Later.P,
        [member.calls(2, 3) for member in Op],
    )
def f(x): return told(), x
"""


def test_members_of_enums_are_what_their_class_made_them(shell) -> None:
    call = deploy(shell, ENUMS)
    for member in ("Planet.MARS", "Coord.PX", "Text.Q", "Flags.C", "Later.P", "Alias.Y"):
        value = shell.run(member)
        told, back = call(value)
        assert told == shell["told"]()
        assert back is value


HOOKED = """
class Plugin:
    known = {}
    def __init_subclass__(cls, *, key, **more):
        super().__init_subclass__(**more)
        Plugin.known.setdefault(key, []).append(cls.__name__)
class First(Plugin, key="first"): pass
class Second(First, key="second"): pass
class Kind(type):
    made = []
    def __new__(kind, name, bases, members):
        Kind.made.append(name)
        return super().__new__(kind, name, bases, members)
class Made(metaclass=Kind): pass
class Below(Made): pass
"""


@pytest.mark.parametrize("named", ["First, Second, Below", "Plugin, Second, Kind, Below"])
def test_classes_are_not_defined_once_more_in_a_runner(shell, named: str) -> None:
    shell.run(HOOKED)
    body = f"def f(x):\n    ({named})\n    return Second.known, Below.made, type(Below) is Kind, x"
    call = deploy(shell, body.replace("Below.made", "type(Below).made"))
    known, made = {"first": ["First"], "second": ["Second"]}, ["Made", "Below"]
    for given in (None, shell["Second"], shell["Below"]):
        assert call(given) == (known, made, True, given)
    assert (shell["Plugin"].known, shell["Kind"].made) == (known, made)


SLOTTED = """
import dataclasses, functools, typing
@dataclasses.dataclass(slots=True)
class Spot:
    x: int
class Hidden:
    __slots__ = ("__x", "__weakref__")
    def __init__(self): self.__x = 1
    def __eq__(self, other): return self.__x == other.__x
class Pair(typing.NamedTuple):
    a: int = 1
class Kept:
    @functools.cached_property
    def made(self): return object()
    def __eq__(self, other): return type(self) is type(other)
class Split(Kept):
    @functools.singledispatchmethod
    def of(self, value): return 0
    @of.register
    def _(self, value: int): return 1
"""


@pytest.mark.parametrize("made", ["Spot(1)", "Hidden()", "Pair()", "Kept()", "Split()"])
def test_slots_and_descriptors_of_functools_come_back(shell, made: str) -> None:
    shell.run(SLOTTED)
    call = deploy(shell, f"def f(x):\n    assert x == {made}\n    return {made}, x")
    fresh = shell.run(made)
    assert call(fresh) == (fresh, fresh)
    assert hasattr(call(fresh)[0], "__dict__") == hasattr(fresh, "__dict__")


GENERIC = """
from typing import Generic, TypeVar
from pydantic import BaseModel
T = TypeVar("T")
class Page(BaseModel, Generic[T]):
    items: list[T]
class Numbers(Page[int]): pass
class Both(BaseModel, Generic[T]):
    page: Page[T]
"""


def test_a_generic_model_with_its_types_is_one_class_there_and_here(shell) -> None:
    shell.run(GENERIC)
    call = deploy(
        shell,
        "def f(given: Page[int], both: Both[str]) -> Numbers:\n"
        "    assert isinstance(given, Page[int]) and isinstance(both.page, Page[str])\n"
        "    assert not isinstance(given, Page[str])\n"
        "    return Numbers(items=given.items)",
    )
    page, both, numbers = (shell[name] for name in ("Page", "Both", "Numbers"))
    found = call(page[int](items=[1]), both[str](page={"items": ["a"]}))
    assert type(found) is numbers
    assert isinstance(found, page[int])
    call = deploy(shell, "def f() -> Page[str]: return Page[str](items=['a'])")
    assert type(call()) is page[str]


def test_names_in_the_annotations_of_typed_dicts_and_tuples_travel(shell) -> None:
    shell.run(
        "from typing import List, NamedTuple, Optional\n"
        "from typing_extensions import NotRequired, TypedDict\nfrom pydantic import BaseModel\n"
        "class Model(BaseModel):\n    n: int\n"
        "class Dict(TypedDict):\n    models: List['Model']\n    more: 'NotRequired[str]'\n"
        "class Pair(NamedTuple):\n    one: 'Optional[Model]'\n    two: 'int'\n"
    )
    call = deploy(shell, "def f(given: Dict) -> Pair: return Pair(given['models'][0], 2)")
    assert call({"models": [shell["Model"](n=1)]}) == shell["Pair"](shell["Model"](n=1), 2)


def test_functions_that_validate_their_calls_travel(shell) -> None:
    shell.run(
        "from pydantic import validate_call\n"
        "@validate_call\ndef twice(n: int): return 2 * n\n"
        "@validate_call(config={'strict': True})\ndef strict(n: int): return n\n"
    )
    call = deploy(shell, "def f(n): return twice(n), strict(n)")
    assert call(2) == (4, 2)
    with pytest.raises(ValueError, match="valid integer"):
        call("2")


def test_classes_made_alike_by_a_function_stay_two(shell) -> None:
    shell.run("def made():\n    class Kind: pass\n    return Kind\nA, B = made(), made()")
    call = deploy(shell, "def f(x): return isinstance(x, A), isinstance(x, B)")
    assert call(shell["A"]()) == (True, False)
    assert call(shell["B"]()) == (False, True)


def test_local_runs_here_and_the_signature_is_the_functions(shell) -> None:
    body = 'import os\ndef f(a: int = 1) -> int:\n    """Say where."""\n    return os.getpid()'
    call = deploy(shell, body)
    assert call.local() == os.getpid() != call()
    assert str(inspect.signature(call)) == "(a: int = 1) -> int"
    assert call.__doc__ == "Say where."


def test_local_recursion_is_local_as_it_is_in_a_runner(shell) -> None:
    """Its calls of itself are not the handle's, whose name stands for the function here."""
    helper = "import os\ndef helper(n): return f(n)\n"
    call = deploy(
        shell,
        f"{helper}def f(n):\n    return [os.getpid(), *(helper(n - 1) if n else [])]",
    )
    assert set(call.local(3)) == {os.getpid()}
    assert set(call(3)) == {call(0)[0]} != {os.getpid()}
    call = deploy(
        shell, "async def f(n):\n    return [os.getpid(), *(await f(n - 1) if n else [])]"
    )
    assert set(asyncio.run(call.local(3))) == {os.getpid()}
    assert set(call(3)) == {call(0)[0]} != {os.getpid()}


def test_local_awaits_a_setup_that_is_async(shell) -> None:
    setup = "calls = []\nasync def load():\n    calls.append(1)\n    return [1]\n"
    shell.run(setup)
    call = deploy(
        shell,
        "async def f(state, x):\n    state.append(x)\n    return state",
        "setup_function=load",
    )
    assert asyncio.run(call.local(2)) == [1, 2]
    assert asyncio.run(call.local(3)) == [1, 2, 3]
    assert shell["calls"] == [1]
    assert call(4) == [1, 4]
    call = deploy(shell, "def f(state, x): return state", "setup_function=load wait=true")
    with pytest.raises(FalNotebookError, match="can be awaited here for an async function only"):
        call.local(2)


def test_local_of_a_handle_from_elsewhere_is_one_sentence() -> None:
    with pytest.raises(FalNotebookError, match="f was not defined in this kernel; run its cell"):
        Handle("tester", "f").local()


def test_aio_is_awaited_on_the_running_loop_and_gathers(shell) -> None:
    deploy(
        shell,
        "import time\ndef f(x):\n    time.sleep(0.2)\n    return x",
        "max_multiplexing=8 wait=true",
    )
    shell.run("import asyncio, time\nbegan = time.monotonic()")
    values = shell.run("await asyncio.gather(*(f.aio(i) for i in range(8)))")
    assert values == list(range(8))
    assert time.monotonic() - shell["began"] < 1.2


def test_aio_of_a_generator_is_an_async_iterator(shell) -> None:
    call = deploy(shell, "def f(n):\n    yield from range(n)")

    async def collect() -> list[int]:
        return [value async for value in await call.aio(3)]

    assert asyncio.run(collect()) == [0, 1, 2]


# --- generators -----------------------------------------------------------------------------
def test_a_generator_is_an_iterator_of_values_as_they_come(shell) -> None:
    call = deploy(
        shell,
        "import time\ndef f():\n    yield 1\n    time.sleep(30)\n    yield 2",
        "wait=true termination_grace_period_seconds=0",
    )
    values = call()
    assert next(values) == 1
    values.close()


def test_async_generators_and_empty_ones_work(shell) -> None:
    call = deploy(shell, "async def f(n):\n    for i in range(n):\n        yield i")
    assert (list(call(3)), list(call(0))) == ([0, 1, 2], [])


def test_an_error_in_a_generator_is_raised_after_its_values(shell) -> None:
    call = deploy(shell, "def f():\n    yield 1\n    raise KeyError('lost')")
    values = call()
    assert next(values) == 1
    with pytest.raises(KeyError, match="lost"):
        next(values)


def test_closing_a_generator_early_frees_its_runner(shell, eventually) -> None:
    call = deploy(
        shell,
        "import itertools, time\ndef f():\n    for i in itertools.count():\n"
        "        time.sleep(0.01)\n        yield i",
        "max_concurrency=1 wait=true",
    )
    values = call()
    assert next(values) == 0
    values.close()
    assert eventually(lambda: call.status()["in_flight"] == 0)
    assert next(call()) == 0


# --- exceptions -----------------------------------------------------------------------------
def test_an_exception_keeps_its_type_and_shows_the_remote_traceback(shell) -> None:
    call = deploy(shell, "def f(): return {}['missing']")
    with pytest.raises(KeyError, match="missing") as caught:
        call()
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteError)
    assert "return {}['missing']" in cause.remote_traceback
    assert cause.type_name == "KeyError"


def test_a_traceback_shows_no_line_of_another_function_of_the_same_name(shell) -> None:
    shell.run("def inner(x): return x\nsame = lambda x: x")
    body = (
        "def f(k):\n"
        "    def inner(z):\n"
        "        return z / 0\n"
        "    g = lambda: [][same(k)]\n"
        "    return g() if k else inner(globals()['inner'](1))"
    )
    call = deploy(shell, body.replace("globals()['inner']", "outer") + "\nouter = inner")
    for given, line, other in (
        (1, "g = lambda: [][same(k)]", "x: x"),
        (0, "return z / 0", "def in"),
    ):
        with pytest.raises((IndexError, ZeroDivisionError)) as caught:
            call(given)
        told = caught.value.__cause__.remote_traceback
        assert line in told
        assert other not in told


def test_an_exception_class_of_the_notebook_is_caught_by_its_class(shell) -> None:
    shell.run(
        "class Refused(Exception):\n"
        "    def __init__(self, code): super().__init__(f'code {code}'); self.code = code\n"
        "    def __reduce__(self): return Refused, (self.code,)"
    )
    call = deploy(shell, "def f(): raise Refused(7)")
    with pytest.raises(shell["Refused"]) as caught:
        call()
    assert caught.value.code == 7


# Of what stands in concurrent.futures, asyncio makes errors of its own on their way.
CONVERTED = """
import concurrent.futures as cf
def failing(name):
    error = {'t': TimeoutError, 'c': cf.CancelledError, 'i': cf.InvalidStateError}[name]('mine')
    error.code = 5
    raise error
def f(name): failing(name)
"""
ITEMS = CONVERTED.replace("def f(name):", "def f(name):\n    yield 1\n   ")
ASYNC_ITEMS = ITEMS.replace("def f(", "async def f(")


@pytest.mark.parametrize("name", ["t", "c", "i"])
@pytest.mark.parametrize("body", [CONVERTED, CONVERTED.replace("def f(", "async def f(")])
def test_an_exception_that_asyncio_knows_arrives_as_it_is(shell, body: str, name: str) -> None:
    call = deploy(shell, body)
    ways = (
        lambda: call(name),
        lambda: asyncio.run(call.aio(name)),
        lambda: call.submit(name).result(),
        lambda: asyncio.run(call.submit(name).aio()),
        lambda: list(call.map([name])),
    )
    for way in ways:
        with pytest.raises(Exception, match="mine") as caught:
            way()
        cause = caught.value.__cause__
        assert isinstance(cause, RemoteError)
        assert "in failing" in cause.remote_traceback
        assert caught.value.code == 5
    assert {group["type"].rpartition(".")[2] for group in call.errors()} == {cause.type_name}


@pytest.mark.parametrize("body", [ITEMS, ASYNC_ITEMS])
def test_an_exception_that_asyncio_knows_ends_a_generator_as_it_is(shell, body: str) -> None:
    async def taken() -> None:
        async for _ in await call.aio("t"):
            pass

    call = deploy(shell, body)
    for way in (lambda: list(call("t")), lambda: asyncio.run(taken())):
        with pytest.raises(TimeoutError, match="mine") as caught:
            way()
        assert "in failing" in caught.value.__cause__.remote_traceback
        assert caught.value.code == 5


def test_an_exception_that_holds_a_lock_is_a_remote_error(shell) -> None:
    body = "def f():\n    import threading\n    raise ValueError('held', threading.Lock())"
    with pytest.raises(RemoteError, match=r"ValueError: .*held") as caught:
        deploy(shell, body)()
    assert "\n".join(caught.value._render_traceback_()).count("raise ValueError('held'") == 1


def test_a_result_that_cannot_travel_is_one_sentence(shell) -> None:
    call = deploy(shell, "import threading\ndef f(): return threading.Lock()")
    with pytest.raises(Exception, match="`f` returned a lock, which cannot be pickled"):
        call()


def test_a_result_is_checked_by_its_annotation_and_arrives_as_local_gives_it(shell) -> None:
    call = deploy(shell, "def f(x) -> int: return x")
    assert call("5") == call.local("5") == "5"
    with pytest.raises(TypeError, match="`f` returned a list, which is not the int of its ann"):
        call([5])


def test_an_argument_that_cannot_travel_is_one_sentence(shell) -> None:
    call = deploy(shell, "def f(x): return x")
    with pytest.raises(UnpicklableError, match=r"an argument of f cannot be pickled: .*lock"):
        call(threading.Lock())


def test_a_runner_that_dies_during_a_call_is_one_sentence(shell) -> None:
    call = deploy(shell, "import os\ndef f(): os._exit(3)")
    with pytest.raises(FalNotebookError) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_call_above_request_timeout_says_so(shell) -> None:
    body = "import time\ndef f(): time.sleep(60)"
    call = deploy(shell, body, "request_timeout=1 termination_grace_period_seconds=0 wait=true")
    with pytest.raises(GatewayError, match="request_timeout=1 s"):
        call()


# --- waiting for the deploy -----------------------------------------------------------------
def test_a_failed_first_deploy_has_logs_and_every_other_question_raises_its_error(shell) -> None:
    shell.run("def load(): raise ValueError('no weights')")
    call = deploy(shell, "def f(): return 1", "setup_function=load")
    for ask in (call, call.status, call.runners, call.openapi, call.wait):
        with pytest.raises(DeployError, match="no weights"):
            ask()
    with pytest.raises(DeployError, match="no weights"):
        asyncio.run(call.aio())
    assert any("no weights" in line["message"] for line in call.logs())


def test_an_interrupted_call_leaves_the_deploy_alone(shell, eventually) -> None:
    shell.run("import time\ndef load(): time.sleep(1)")
    call = deploy(shell, "def f(): return 5", "setup_function=load")
    with interrupted_after(0.2), pytest.raises(KeyboardInterrupt):
        call()
    assert call() == 5


def test_an_interrupted_call_cancels_its_request(shell, eventually) -> None:
    body = "import asyncio\nasync def f(): await asyncio.sleep(60)"
    call = deploy(shell, body, "wait=true termination_grace_period_seconds=0")
    with interrupted_after(0.4), pytest.raises(KeyboardInterrupt):
        call()
    assert eventually(lambda: call.status()["in_flight"] == 0)


def test_cancelling_an_awaited_call_leaves_the_deploy_alone(shell) -> None:
    shell.run("import time\ndef load(): time.sleep(0.5)")
    call = deploy(shell, "def f(): return 5", "setup_function=load")

    async def impatient() -> None:
        await asyncio.wait_for(call.aio(), 0.1)

    with pytest.raises(TimeoutError if hasattr(asyncio, "timeout") else asyncio.TimeoutError):
        asyncio.run(impatient())
    assert call() == 5


# --- questions ------------------------------------------------------------------------------
def test_status_runners_timeline_and_openapi_tell_of_the_app(shell) -> None:
    call = deploy(shell, "def f(x: int) -> str: return str(x)")
    call(1)
    assert call.status()["options"]["keep_alive"] == 10
    assert [runner["state"] for runner in call.runners()] == ["IDLE"]
    assert call.timeline()[-1]["runners"] == 1
    assert "post" in call.openapi()["paths"]["/"]
    assert repr(call) == "<fal app tester/f>"


def test_runners_that_have_no_process_yet_are_listed(shell) -> None:
    call = deploy(shell, "def f(): return 1", "max_concurrency=3 wait=true")
    call.scale(min_concurrency=3)
    assert {runner["state"] for runner in call.runners()} <= {"PENDING", "SETUP", "IDLE"}


def test_scale_takes_effect_at_once_and_refuses_in_one_sentence(shell) -> None:
    call = deploy(shell, "def f(): return 1")
    assert call.scale(keep_alive=42)["options"]["keep_alive"] == 42
    with pytest.raises(OptionError, match="did you mean 'keep_alive'"):
        call.scale(keep_alives=1)
    with pytest.raises(OptionError, match="max_concurrency=0 is not allowed"):
        call.scale(max_concurrency=0)
    with pytest.raises(OptionError, match="name at least one option"):
        call.scale()


def test_logs_are_lines_with_their_request_and_are_followed(shell) -> None:
    call = deploy(shell, "def f(x):\n    print('saw', x)")
    call(1)
    lines = [line for line in call.logs() if line["message"] == "saw 1"]
    assert len(lines) == 1
    assert lines[0]["request"]
    followed = call.logs(follow=True)
    assert next(line for line in followed if line["message"] == "saw 1")
    call(2)
    assert next(line for line in followed if line["message"] == "saw 2")
    followed.close()


def test_questions_about_an_app_that_is_not_there_name_it(shell) -> None:
    nobody = Handle("tester", "nobody")
    for ask in (nobody, nobody.status, nobody.delete, lambda: nobody.logs(follow=True)):
        with pytest.raises(NotFoundError, match="there is no app tester/nobody"):
            ask()


def test_a_deleted_app_is_gone_for_its_handle(shell) -> None:
    call = deploy(shell, "def f(): return 1")
    call.delete()
    with pytest.raises(NotFoundError, match="there is no app tester/f"):
        call()


# --- how it travels -------------------------------------------------------------------------
def test_a_handle_travels_as_owner_and_name(shell, gateway) -> None:
    call = deploy(shell, "def f(): return 1")
    content = pickle.dumps(call)
    assert (pickle.loads(content).owner, pickle.loads(content).name) == ("tester", "f")
    assert gateway.token.encode() not in content


def test_a_captured_handle_calls_its_app_from_inside_another(shell) -> None:
    deploy(shell, "def inner(x): return x + 1")
    body = "async def outer(x): return inner(x) + await inner.aio(x), inner.url"
    deploy(shell, body)
    value, url = shell["outer"](1)
    assert (value, url) == (4, shell["inner"].url)
    deploy(shell, body)
    assert shell["outer"].status()["number"] == 1


def test_models_with_aliases_in_them_come_and_go(shell) -> None:
    shell.run(
        "from pydantic import BaseModel\nfrom typing_extensions import TypeAliasType\n"
        "Parts = TypeAliasType('Parts', 'list[int] | None')\n"
        "class Whole(BaseModel):\n    parts: Parts = None\n"
    )
    call = deploy(shell, "def f(x: Whole) -> Whole: return x")
    whole = shell["Whole"](parts=[1])
    assert call(whole) == call({"parts": [1]}) == whole


def test_a_keyword_may_be_named_self(shell) -> None:
    call = deploy(shell, "def f(*, self: int, **more): return self, more")
    assert call(self=1, me=2) == call.local(self=1, me=2) == (1, {"me": 2})


def test_an_error_through_another_handle_is_at_the_line_that_called_it(shell) -> None:
    deploy(shell, "def inner(): raise LookupError('within')")
    deploy(shell, "def outer():\n    return inner()")
    with pytest.raises(LookupError):
        shell["outer"]()
    (group,) = shell["outer"].errors()
    assert group["place"].endswith(" in outer")
    assert "fal_notebook" not in group["place"]


def test_the_handle_of_a_captured_app_has_its_endpoints_inside_another(shell) -> None:
    shell.run("import fal_notebook as fal")
    shell.run(
        "%%fal_app wait=true\nclass Inner(fal.App):\n"
        "    @fal.endpoint('/')\n    def root(self, n: int) -> int: return n\n"
        "    @fal.endpoint('/add')\n    def add(self, n: int) -> int: return n + 1\n"
        "    @fal.endpoint('/stream')\n    def parts(self, n: int): yield from range(n)\n"
    )
    body = """
    def outer(n):
        once = Inner.add.submit(n).result()
        try:
            Inner.local
        except Exception as error:
            return Inner(n), Inner.add(n), once, list(Inner.stream(n=n)), str(error)
    """
    deploy(shell, body)
    *values, error = shell["outer"](2)
    assert values == [2, 3, 3, [0, 1]]
    assert error == "inner was not defined in this kernel; run its cell"
    deploy(shell, body)
    assert shell["outer"].status()["number"] == 1


def test_a_forked_child_can_use_the_handle(shell) -> None:
    call = deploy(shell, "def f(): return 9")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, str(call()).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 10) == b"9"
    os.close(reading)
    os.close(writing)


def test_local_passes_what_setup_returned_and_runs_it_once(shell) -> None:
    shell.run("calls = []\ndef load():\n    calls.append(1)\n    return {'a': 1}")
    call = deploy(shell, "def f(table, key): return table[key]", "setup_function=load wait=true")
    assert (call.local("a"), call.local("a"), shell["calls"]) == (1, 1, [1])


def test_an_exception_class_of_the_notebook_arrives_as_itself(shell) -> None:
    shell.run(
        "class Odd(Exception):\n"
        "    def __init__(self, code, why):\n"
        "        super().__init__(f'{code}: {why}')\n"
        "        self.code = code\n"
    )
    call = deploy(shell, "def f(): raise Odd(7, 'because')")
    with pytest.raises(shell["Odd"], match="7: because") as caught:
        call()
    assert caught.value.code == 7


def test_an_error_of_this_package_shows_where_the_runner_raised_it(shell, capsys) -> None:
    shell.run("from fal_notebook.exceptions import OptionError")
    deploy(shell, "def f(): raise OptionError('no such thing')")
    shell.ip.run_cell("f()")
    out = capsys.readouterr().out
    assert "raise OptionError('no such thing')" in out


def test_the_traceback_of_a_call_shows_the_users_line_and_not_ours(shell, capsys) -> None:
    deploy(shell, "def f(): return 1 / 0")
    shell.ip.run_cell("f()  # my line")
    out = capsys.readouterr().out
    assert "# my line" in out
    assert "1 / 0" in out
    for ours in ("handle.py", "calls.py", "concurrent/futures"):  # sync.py is the last frame
        assert ours not in out


def test_an_interrupted_call_shows_the_users_line_and_not_ours(shell, capsys) -> None:
    deploy(shell, "import time\ndef f(): time.sleep(60)")
    with interrupted_after(0.5):
        shell.ip.run_cell("f()  # my line")
    out = capsys.readouterr().out
    assert "# my line" in out
    assert "KeyboardInterrupt" in out
    for ours in ("handle.py", "concurrent/futures", "threading.py"):  # sync.py is the last frame
        assert ours not in out
