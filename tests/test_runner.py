"""A runner serves its function: results, errors, threads, drains, and a clean process."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from runner_bench import STATES, Bench, LiveRunner

MODELS = """
from __future__ import annotations
import dataclasses, datetime, decimal, enum, pathlib
from typing import Annotated, Any, Optional
import numpy as np
from pydantic import BaseModel, Field, field_validator
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
class Point(BaseModel):
    x: int
    y: Optional[int] = None
    @field_validator("x")
    @classmethod
    def small(cls, value):
        if value > 100: raise ValueError("x is above 100")
        return value
class Named(BaseModel):
    inner: int = Field(serialization_alias="OUTER")
@dataclasses.dataclass
class Size:
    width: int
"""


@pytest.fixture(autouse=True)
def _no_runner_is_left(bench: Bench) -> Iterator[None]:
    yield
    bench.end_runners()


def start(bench: Bench, source: str, **spec: Any) -> LiveRunner:
    return bench.start(MODELS + source, **spec)


@pytest.mark.parametrize("parameter", ["", "request: Request, "])
def test_a_call_whose_caller_leaves_while_it_waits_does_not_run(
    bench: Bench, tmp_path: Path, parameter: str
) -> None:
    """Such as an attempt for the queue of a gateway that was killed; the one at work goes on."""
    source = f"""
from starlette.requests import Request
import time
def f({parameter}n: int) -> int:
    with open({str(tmp_path / "began")!r}, "a") as file: file.write(str(n))
    while n == 1 and not os.path.exists({str(tmp_path / "go")!r}): time.sleep(0.01)
    return n
"""
    runner = start(bench, f"import os{source}")

    def ask(n: int, timeout: float = 30) -> Any:
        with runner.client() as client:
            return client.post("/", json={"n": n}, timeout=timeout).json()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, 1)
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        with pytest.raises(httpx.ReadTimeout):
            ask(2, timeout=0.3)
        third = pool.submit(ask, 3)
        time.sleep(0.7)  # whose code may ask has half a second to hear that its caller has gone
        (tmp_path / "go").touch()
        assert (first.result(), third.result()) == (1, 3)
    assert (tmp_path / "began").read_text() == "13"


# --- results -------------------------------------------------------------------------------------
RESULTS = {
    "np.float32(1.5)": 1.5,
    "np.arange(3)": [0, 1, 2],
    "{np.int64(3): np.bool_(True)}": {"3": True},
    "[float('nan'), np.float64('inf'), np.array([np.nan])]": [None, None, [None]],
    "{1}": [1],
    "b'abc'": "abc",
    "None": None,
    "Point(x=1)": {"x": 1, "y": None},
    "[Point(x=1)]": [{"x": 1, "y": None}],
    "Size(2)": {"width": 2},
    "datetime.date(2026, 1, 2)": "2026-01-02",
    "(1, 'ä')": [1, "ä"],
    "pathlib.Path('a/b')": "a/b",
    "__import__('sklearn').base.BaseEstimator().get_params()": {},
}


def test_results_without_annotation_become_json(bench: Bench) -> None:
    values = ", ".join(f"lambda: {text}" for text in RESULTS)
    source = f"import sklearn.base\ndef f(n: int):\n    return [{values}][n]()"
    runner = start(bench, source)
    for number, (text, expected) in enumerate(RESULTS.items()):
        assert runner.value(n=number) == expected, text


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        ("Point", "{'x': np.int64(3)}", {"x": 3, "y": None}),
        ("list[float]", "np.ones(2)", [1.0, 1.0]),
        ("np.ndarray", "np.ones(2)", [1.0, 1.0]),
        ("float", "np.float32(2)", 2.0),
        ("Optional[Point]", "None", None),
        ("dict[int, float]", "{np.int64(4): np.float32(3)}", {"4": 3.0}),
        ("None", "None", None),
        ("Named", "Named(inner=1)", {"OUTER": 1}),
        ("Any", "Named(inner=1)", {"OUTER": 1}),
    ],
)
def test_annotated_results_become_json(
    bench: Bench, annotation: str, value: str, expected: Any
) -> None:
    assert start(bench, f"def f() -> {annotation}: return {value}").value() == expected


def test_a_result_without_json_form_is_500_and_the_log_names_its_type(bench: Bench) -> None:
    runner = start(bench, "class Odd: pass\ndef f(n: int): return [Odd(), [Odd()], b'\\xff'][n]")
    for number, kind in enumerate(("Odd", "Odd", "bytes")):
        reply = runner.post({"n": number})
        assert (reply.status_code, reply.json()) == (500, {"detail": "Internal Server Error"})
        assert reply.headers["x-fal-error-type"] == "runner_server_error"
        assert kind in runner.log()[-1]
        assert "has no JSON form" in runner.log()[-1]


def test_a_result_is_what_its_annotation_says_or_500_with_the_reason_in_the_log(
    bench: Bench,
) -> None:
    runner = start(bench, "def f(x) -> Point: return {'x': x}")
    assert runner.value(x="7") == {"x": 7, "y": None}
    reply = runner.post({"x": "no"})
    assert (reply.status_code, reply.json()) == (500, {"detail": "Internal Server Error"})
    assert "`f` returned a dict, which is not the Point" in runner.log()[-1]
    assert runner.call("7")[0][0] == "return"
    assert runner.call("no")[0][:2] == ("raise", "TypeError")


def test_the_items_of_a_stream_are_what_the_annotation_says(bench: Bench) -> None:
    source = (
        "from collections.abc import Iterator\ndef f() -> Iterator[int]:\n    yield from (1, 'a')"
    )
    runner = start(bench, source)
    assert runner.post({}).text.startswith("data: 1\n\nevent: error")
    assert [frame[0] for frame in runner.call()] == ["stream", "item", "raise"]


def test_a_validation_error_has_fastapis_shape_whatever_its_context(bench: Bench) -> None:
    runner = start(bench, "def f(p: Point): return p")
    reply = runner.post({"x": 101})
    (error,) = reply.json()["detail"]
    assert (reply.status_code, error["loc"], error["type"]) == (422, ["body", "x"], "value_error")
    assert "x is above 100" in error["msg"]
    (error,) = runner.post(b'{"x": NaN}').json()["detail"]
    assert error["input"] is None
    assert runner.post(b"\xff").status_code == 422


def test_a_value_that_json_cannot_give_says_who_can(bench: Bench) -> None:
    runner = start(bench, "def f(x: np.ndarray): return 1")
    reply = runner.post({"x": [1]})
    (error,) = reply.json()["detail"]
    assert (reply.status_code, error["loc"]) == (422, ["body", "x"])
    assert error["type"] == "needs_python_object"
    assert error["msg"] == (
        "JSON cannot give a value of this parameter's class; call the handle from Python"
    )


def test_a_body_that_is_no_json_names_the_place_and_an_empty_one_is_missing(bench: Bench) -> None:
    model = start(bench, "def f(p: Point): return p")
    (error,) = model.post(b'{"x": }').json()["detail"]
    assert (error["loc"], error["msg"], error["input"]) == (["body", 6], "JSON decode error", {})
    assert error["ctx"] == {"error": "Expecting value"}
    (error,) = model.post(b'{"x": "\xff"}').json()["detail"]
    assert (error["type"], error["loc"]) == ("json_invalid", ["body", 7])
    deep = b"[" * 500 + b"]" * 500  # too deep for pydantic alone
    (error,) = model.post(deep).json()["detail"]
    assert (error["type"], error["loc"][0]) == ("json_invalid", "body")
    (error,) = model.post(b"[" * 100_000).json()["detail"]
    assert error["type"] == "json_invalid"
    refused = model.post(b'{"x": 1, "more": ' + b"9" * 5000 + b"}")  # above what Python reads
    assert (refused.status_code, refused.json()["detail"][0]["type"]) == (422, "json_invalid")
    absent = {"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}
    assert model.post(b"").json() == {"detail": [absent]}
    plain = start(bench, "from pydantic import Json\ndef f(a: int, j: Json = '1'): return a")
    assert plain.post(b"").json() == {"detail": [{**absent, "loc": ["body", "a"]}]}
    (error,) = plain.post({"a": 1, "j": "{"}).json()["detail"]
    assert (error["loc"], error["input"]) == (["body", "j"], "{")


def test_an_http_exception_chooses_the_answer(bench: Bench) -> None:
    source = (
        "def f(n: int):\n    raise HTTPException(409, {'why': n, 'at': datetime.date(2026, 1, 2)},"
        " headers={'retry-after': '3'})"
    )
    reply = start(bench, source).post({"n": 1})
    assert (reply.status_code, reply.headers["retry-after"]) == (409, "3")
    assert reply.json() == {"detail": {"why": 1, "at": "2026-01-02"}}


@pytest.mark.parametrize("route", ["", ", fastapis: Any = Depends(lambda: 1)"])
@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("raise HTTPException(600, 'x')", "status 600"),
        ("raise HTTPException(400, headers={'x-a': 'b\\r\\nset-cookie: c'})", "header 'x-a'"),
        ("return Response('x', 101)", "status 101"),
        ("return Response('x', 150)", "status 150"),
        ("return Response('x', headers={'x-\u00fc': 'b'})", "header named 'x-\u00fc'"),
        ("return Response('x', headers={'content-length': 'many'})", "content-length"),
        ("return Response('x', headers={'Transfer-Encoding': 'chunked'})", "and a transfer-enc"),
        ("return StreamingResponse(iter([b'a', b'b']), 700)", "status 700"),
    ],
)
def test_an_answer_that_http_has_no_form_for_is_an_error_of_its_request_alone(
    bench: Bench, answer: str, wrong: str, route: str
) -> None:
    imports = "from fastapi import Depends\nfrom starlette.responses import StreamingResponse\n"
    runner = start(bench, f"{imports}def f(bad: bool{route}):\n    if bad: {answer}\n    return 1")
    reply = runner.post({"bad": True})
    assert (reply.status_code, reply.json()) == (500, {"detail": "Internal Server Error"})
    assert reply.headers["x-fal-error-type"] == "runner_server_error"
    assert runner.post({"bad": False}).text == "1"
    assert wrong in "\n".join(runner.log())


def test_a_response_of_starlette_passes_as_it_is(bench: Bench) -> None:
    reply = start(bench, "def f() -> Response: return HTMLResponse('<b>', 201)").post()
    assert (reply.status_code, reply.text) == (201, "<b>")
    assert reply.headers["content-type"].startswith("text/html")


def test_paths_and_methods_that_are_not_there(bench: Bench) -> None:
    runner = start(bench, "def f(): return 1")
    with runner.client() as client:
        assert client.get("/").status_code == 405
        assert client.post("/other").status_code == 404
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/openapi.json").json() == runner.openapi()


# --- functions of every kind ---------------------------------------------------------------------
WRAPPERS = """
import asyncio, functools
def traced(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper
def finished(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return asyncio.run(function(*args, **kwargs))
    return wrapper
"""


@pytest.mark.parametrize(
    "source",
    [
        "async def f(x: int): return x + 1",
        "@traced\ndef f(x: int): return x + 1",
        "@traced\nasync def f(x: int): return x + 1",
        "@finished\nasync def f(x: int): return x + 1",
        "def f(x: int, /): return x + 1",
        "@functools.lru_cache\ndef f(x: int): return x + 1",
    ],
)
def test_sync_async_and_decorated_functions_answer(bench: Bench, source: str) -> None:
    assert start(bench, WRAPPERS + source).value(x=1) == 2


def test_a_partial_and_an_object_answer(bench: Bench) -> None:
    source = (
        "import functools\ndef add(a: int, b: int): return a + b\n"
        "inc = functools.partial(add, 1)\ndef unused(): pass"
    )
    assert start(bench, source, entry="inc").value(b=2) == 3


@pytest.mark.parametrize(
    "source",
    [
        "def f(n: int):\n    yield from range(n)",
        "async def f(n: int):\n    for i in range(n): yield i",
        "@traced\ndef f(n: int):\n    yield from range(n)",
        "def f(n: int): return (i for i in range(n))",
    ],
)
def test_generators_are_streamed_as_events_and_as_values(bench: Bench, source: str) -> None:
    runner = start(bench, WRAPPERS + source)
    reply = runner.post({"n": 3})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert [frame[0] for frame in runner.call(2)] == ["stream", "item", "item", "return"]


def test_a_field_default_counts_for_a_handles_call_too(bench: Bench) -> None:
    runner = start(bench, "def f(x: int, y: int = Field(3, ge=1)): return x + y")
    (frame,) = runner.call(1)
    assert frame[0] == "return"
    assert runner.value(x=1) == 4


@pytest.mark.parametrize("kind", ["", "async "])
def test_setups_result_is_the_first_argument(bench: Bench, kind: str) -> None:
    source = f"{kind}def setup(): return [10]\n{kind}def f(state, x: int): return state[0] + x"
    runner = start(bench, source)
    assert runner.value(x=1) == 11
    (name,) = runner.openapi()["components"]["schemas"]
    assert list(runner.openapi()["components"]["schemas"][name]["properties"]) == ["x"]


def test_a_setup_that_returns_none_adds_no_argument(bench: Bench) -> None:
    assert start(bench, "def setup(): pass\ndef f(x: int): return x").value(x=1) == 1


@pytest.mark.parametrize(
    "raising", ["raise SystemExit(3)", "raise StopIteration", "raise KeyboardInterrupt"]
)
@pytest.mark.parametrize("kind", ["", "async "])
def test_what_would_end_a_program_is_an_ordinary_error(
    bench: Bench, raising: str, kind: str
) -> None:
    runner = start(bench, f"{kind}def f(bad: bool):\n    if bad: {raising}\n    return 1")
    assert runner.post({"bad": True}).status_code == 500
    assert runner.call(True)[0][0] == "raise"
    assert runner.value(bad=False) == 1


def test_a_function_that_cancels_its_own_task_is_answered(bench: Bench) -> None:
    source = "import asyncio\nasync def f():\n    asyncio.current_task().cancel()\n    "
    runner = start(bench, source + "await asyncio.sleep(9)")
    assert runner.post().status_code == 499


# --- threads and the loop ------------------------------------------------------------------------
# Nobody returns before as many as may have come; a request too many would be seen in the peak.
PEAK = """
import threading, time
now = peak = 0
def setup():
    import builtins
    builtins.lock = threading.Lock()
def f(limit: int):
    global now, peak
    with lock:
        now += 1
        peak = max(peak, now)
    while peak < limit: time.sleep(0.001)
    time.sleep(0.01)
    with lock: now -= 1
    return peak
"""
ASYNC_PEAK = """
import asyncio
now = peak = 0
async def f(limit: int):
    global now, peak
    now += 1
    peak = max(peak, now)
    while peak < limit: await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    now -= 1
    return peak
"""


@pytest.mark.parametrize("source", [PEAK, ASYNC_PEAK])
@pytest.mark.parametrize("limit", [1, 4])
def test_as_many_requests_run_at_once_as_max_multiplexing_says(
    bench: Bench, source: str, limit: int
) -> None:
    runner = bench.start(source, max_multiplexing=limit)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: runner.value(limit=limit), range(6)))
    assert runner.value(limit=limit) == limit


def test_a_blocking_handler_does_not_stop_health(bench: Bench) -> None:
    runner = start(bench, "import time\ndef f(): time.sleep(0.5)")
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(runner.post)
        with runner.client() as client:
            assert client.get("/health").status_code == 200
        assert not busy.done()


def test_an_async_handler_is_cancelled_when_its_caller_goes(bench: Bench, eventually: Any) -> None:
    source = (
        "import asyncio\nasync def f():\n    print('begun')\n    try: await asyncio.sleep(30)\n"
        "    finally: print('ended')"
    )
    runner = start(bench, source)
    with runner.client() as client:
        gone = threading.Thread(target=_give_up, args=(client,))
        gone.start()
        eventually(lambda: "begun" in runner.log())
        gone.join()
    eventually(lambda: "ended" in runner.log())


def _give_up(client: Any) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post("/", timeout=0.3)


def test_a_stream_whose_reader_goes_is_closed(bench: Bench, eventually: Any) -> None:
    source = (
        "import time\ndef f():\n    try:\n        while True:\n            time.sleep(0.01)\n"
        "            yield 1\n    finally: print('closed')"
    )
    runner = start(bench, source)
    with runner.client() as client, client.stream("POST", "/") as reply:
        next(reply.iter_lines())
    eventually(lambda: "closed" in runner.log())
    assert not [line for line in runner.log() if "Traceback" in line]


# --- a clean process -----------------------------------------------------------------------------
def test_the_environment_holds_what_was_declared_and_nothing_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAL_KEY", "of the kernel")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/lib/of/mine")
    monkeypatch.setenv("NOTEBOOK_SECRET", "x")
    runner = start(
        bench, "import os\ndef f(): return dict(os.environ)", environment={"FAL_APP_NAME": "a"}
    )
    found = runner.value()
    assert found["FAL_APP_NAME"] == "a"
    assert found["LD_LIBRARY_PATH"] == "/lib/of/mine"
    assert found["PATH"].endswith(os.environ["PATH"])
    assert not {"FAL_KEY", "NOTEBOOK_SECRET", "FAL_NOTEBOOK_STATE", "PYTEST_CURRENT_TEST"} & {
        *found
    }


def test_children_of_the_runner_inherit_the_clean_environment(bench: Bench) -> None:
    runner = start(
        bench,
        "import subprocess, sys\ndef f(): return subprocess.check_output([sys.executable, '-c', "
        "'import os, json; print(json.dumps(dict(os.environ)))'], text=True)",
    )
    assert json.loads(runner.value()).keys() <= {*runner.spec.environment, "LC_CTYPE"}


def test_folder_path_stdin_and_umask_are_the_runners_own(bench: Bench) -> None:
    source = """
import os, sys, stat
def f():
    open("made", "w").close()
    return {
        "cwd": os.getcwd(), "path": sys.path, "stdin": sys.stdin.read(), "argv": sys.argv,
        "mode": stat.S_IMODE(os.stat("made").st_mode), "stdin_is": os.readlink("/proc/self/fd/0"),
        "session": os.getsid(0) == os.getpid() == os.getpgrp(),
    }
"""
    runner = start(bench, source)
    found = runner.value()
    assert found["cwd"] == str(runner.folder)
    assert found["argv"] == [""]
    assert (found["mode"], found["stdin"], found["stdin_is"]) == (0o600, "", "/dev/null")
    assert found["session"]
    assert not {"", str(Path(__file__).parent)} & {*found["path"]}


def test_no_descriptor_of_gateway_or_zygote_reaches_a_runner_or_its_children(bench: Bench) -> None:
    source = """
import os, subprocess
def links(folder):
    found = {}
    for name in os.listdir(folder):
        try: found[int(name)] = os.readlink(f"{folder}/{name}")
        except OSError: pass
    return found
def f():
    # It writes when the dynamic loader has closed what it opened, and stays the same program.
    child = subprocess.Popen(["sh", "-c", "echo up; sleep 30; :"], stdout=subprocess.PIPE)
    child.stdout.readline()
    return links("/proc/self/fd"), links(f"/proc/{child.pid}/fd")
"""
    runner = start(bench, source)
    own, childs = runner.value()
    assert own["1"] == own["2"] == runner.spec.log
    files = {name for name in own.values() if name.startswith("/") and "/dev/" not in name}
    assert all(
        name == runner.spec.log or name.startswith(f"{bench.state}/runner-") for name in files
    )
    sockets = [name for name in own.values() if name.startswith("socket:")]
    assert len(sockets) <= 4, own  # its listener, this connection, the loop's own pair
    assert childs.pop("1").startswith("pipe:")  # the one that it was given
    assert childs == {"0": "/dev/null", "2": runner.spec.log}


def test_signals_are_at_their_defaults(bench: Bench) -> None:
    source = """
import signal
def f():
    usual = (signal.SIGCHLD, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
    return [signal.getsignal(n) == signal.SIG_DFL for n in usual] + [
        signal.getsignal(signal.SIGINT) == signal.default_int_handler,
        not signal.pthread_sigmask(signal.SIG_BLOCK, []),
    ]
"""
    assert all(start(bench, source).value())


def test_main_is_a_module_of_the_notebooks_names(bench: Bench) -> None:
    source = """
import __main__, multiprocessing, sys
def double(x): return x * 2
def f():
    pool = multiprocessing.get_context("fork").Pool(1)
    doubled = pool.map(double, [1, 2])
    pool.close()  # terminate, as of a with statement, may hang in CPython
    pool.join()
    return doubled, sorted(n for n in vars(sys.modules["__main__"]) if not n.startswith("_"))
"""
    doubled, names = start(bench, source).value()
    assert doubled == [2, 4]
    assert names == ["double", "f", "multiprocessing", "sys"]


def test_two_forked_runners_have_random_states_of_their_own(bench: Bench) -> None:
    source = """
import os, random, ssl, uuid
import numpy as np
def f():
    return [random.random(), np.random.rand(), uuid.uuid4().hex, os.urandom(8).hex(),
            ssl.RAND_bytes(8).hex()]
"""
    first, second = (start(bench, source).value() for _ in range(2))
    assert all(a != b for a, b in zip(first, second, strict=True))


# --- the end -------------------------------------------------------------------------------------
def test_sigterm_lets_a_request_finish_and_ends_the_runner(bench: Bench, eventually: Any) -> None:
    runner = start(bench, "import time\ndef f(): print('begun'); time.sleep(0.4); return 7")
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(runner.value)
        eventually(lambda: "begun" in runner.log())
        runner.stop()
        assert working.result() == 7
    eventually(lambda: not runner.alive())
    assert not os.path.exists(runner.socket)


def test_a_runner_without_a_gateway_ends_by_itself_with_its_children(
    bench: Bench, eventually: Any
) -> None:
    import psutil

    source = """
import subprocess
def setup(): return subprocess.Popen(["sleep", "1000"], start_new_session=True, env={}).pid
def f(pid): return pid
"""
    runner = start(bench, source, orphan_timeout=0.4)
    child = runner.value()
    eventually(lambda: not runner.alive())
    eventually(lambda: not psutil.pid_exists(child))


def test_a_runner_without_a_gateway_does_not_wait_for_ever_for_what_it_does(
    bench: Bench, eventually: Any
) -> None:
    source = "import time\ndef f(): print('begun'); time.sleep(1000)"
    runner = start(bench, source, orphan_timeout=0.4)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(runner.value)
        eventually(lambda: "begun" in runner.log())
        eventually(lambda: not runner.alive())
        assert working.exception() is not None


def test_a_runner_with_a_gateway_stays(bench: Bench, eventually: Any) -> None:
    runner = start(bench, "def f(): return 1", orphan_timeout=1.5)
    with runner.client() as client, client.stream("GET", "/", headers=STATES):
        lone = start(bench, "def f(): return 1", orphan_timeout=1.5)
        eventually(lambda: not lone.alive())
        assert runner.alive()


def test_a_drain_waits_for_what_its_gateway_has_on_the_way(bench: Bench, eventually: Any) -> None:
    runner = start(bench, "def f(): return 1")
    with runner.client() as link, link.stream("GET", "/", headers=STATES) as reply:
        states = reply.iter_lines()
        assert "IDLE" in next(line for line in states if "IDLE" in line)
        runner.stop()
        assert "DRAINING" in next(states)
        assert runner.value() == 1
        with runner.client() as client:
            assert client.post("/", headers={"x-fal-link": "end"}).status_code == 204
    eventually(lambda: not runner.alive())


@pytest.mark.parametrize(
    ("setup", "error"),
    [
        ("raise ValueError('no model')", "ValueError: no model"),
        ("raise MemoryError", "MemoryError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("return 1", "TypeError: setup_function returned a value"),
    ],
)
def test_a_failing_setup_is_told_on_the_link_and_in_the_log(
    bench: Bench, setup: str, error: str
) -> None:
    runner = bench.start(f"def setup(): {setup}\ndef f(): pass", ready=False)
    failure = next(line for line in runner.states() if line["state"] == "FAILED")
    assert error in failure["error"]
    kind = error.partition(":")[0].partition("(")[0]
    assert any(line.startswith(kind) for line in runner.log())


def test_a_sentence_of_ours_is_told_without_its_class(bench: Bench) -> None:
    raised = "from fal_notebook.exceptions import GatewayError; raise GatewayError('no such app')"
    runner = bench.start(f"def setup(): {raised}\ndef f(): pass", ready=False)
    failure = next(line for line in runner.states() if line["state"] == "FAILED")
    assert failure["error"] == "no such app"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("box = {'deep': [1, Bad()]}\ndef f(): return box", "box"),
        ("texts = ('a', 'b', Bad())\ndef uses(): return texts\ndef f(): return uses()", "texts"),
        ("class Holder:\n    bad = Bad()\ndef f(): return Holder", "Holder"),
        ("def f(given=Bad()): return given", "f"),
    ],
)
def test_a_value_that_cannot_be_loaded_is_named(bench: Bench, source: str, name: str) -> None:
    bad = "class Bad:\n    def __reduce__(self): return int, ('x',)\n"
    runner = bench.start(bad + source, ready=False)
    failure = next(line for line in runner.states() if line["state"] == "FAILED")
    assert failure["error"].startswith(f"`{name}` was pickled, but cannot be loaded in a runner (V")


@pytest.mark.parametrize(
    ("crash", "ending"),
    [
        ("import os; os._exit(3)", "exit status 3"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
    ],
)
def test_how_a_runner_ended_is_known(
    bench: Bench, crash: str, ending: str, eventually: Any
) -> None:
    runner = bench.start(f"def setup():\n    {crash}\ndef f(): pass", ready=False)
    eventually(lambda: not runner.alive())
    eventually(lambda: runner.kill() == ending)
    if ending == "SIGSEGV":
        assert any("Segmentation fault" in line for line in runner.log())
