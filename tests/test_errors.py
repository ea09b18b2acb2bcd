"""Requests that fail are grouped by type and place, with a count and a sample, and kept."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_processes import deploy, end, stop
from inside import until
from serving import Wire, control, deployed, post, run_url

from fal_notebook import cli, discovery
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import NotFoundError, RemoteError, StoreError
from fal_notebook.gateway.errors import GROUPS, Errors
from fal_notebook.gateway.logs.redaction import Redaction
from fal_notebook.gateway.store import App, ErrorGroup, Store
from fal_notebook.gateway.vault import Vault
from fal_notebook.handle import Handle
from fal_notebook.runner import shown
from fal_notebook.runner.failures import KEPT, Failures, defined_at, place_of, type_name
from fal_notebook.runner.link import Link
from fal_notebook.runner.results import output_of
from fal_notebook.runner.secret_forms import hiding

SOURCE = """
import json, os, time
from fastapi import HTTPException
from starlette.responses import Response

class Odd(Exception): pass

def deep(text):
    return json.loads(text)

def fails(how: str, n: int = 0) -> int:
    if how == "value": raise ValueError(f"bad {n}")
    if how == "odd": raise Odd(n)
    if how == "library": deep("{")
    if how == "answer": return Response("busy", n)
    if how == "refuse": raise HTTPException(n, "not now")
    if how == "exit": raise SystemExit(3)
    if how == "die": os.kill(os.getpid(), 9)
    if how == "wait": time.sleep(60)
    return "no number" if how == "result" else n
"""
RESPONSE = """
from fastapi.responses import StreamingResponse
class Midway(Exception): pass
def parts(n):
    yield "first"
    raise Midway(n)
def responds(n: int):
    return StreamingResponse(parts(n))
"""
STREAM = """
import os
class Late(Exception): pass
async def streams(n: int):
    for i in range(n): yield i
    raise Late("after %d" % n)
"""
ASYNC = """
import asyncio
async def awaits(n: int) -> int:
    await asyncio.sleep(0)
    return 1 // n
"""


@pytest.fixture(scope="module")
def fails(gateway: GatewayInfo) -> Iterator[Handle]:
    with deployed(SOURCE, serve=True, auth="public", max_concurrency=2, keep_alive=60) as handle:
        yield handle


def counts(handle: Handle) -> dict[str, int]:
    found: dict[str, int] = {}
    for group in handle.errors():
        found[group["type"]] = found.get(group["type"], 0) + group["count"]
    return found


def grown(handle: Handle, before: dict[str, int]) -> dict[str, int]:
    now = counts(handle)
    return {name: now[name] - before.get(name, 0) for name in now if now[name] != before.get(name)}


# --- what the runner says -----------------------------------------------------------------------


def raised(source: str, filename: str = "<cell 7>", **names: Any) -> BaseException:
    try:
        exec(compile(source, filename, "exec"), {"__name__": "__main__", **names})
    except BaseException as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("def f():\n  raise ValueError\nf()", "<cell 7>:2 in f"),
        ("import json\ndef f():\n\n  json.loads('{')\nf()", "<cell 7>:4 in f"),
        ("def g(): 1 / 0\ndef f(): g()\nf()", "<cell 7>:1 in g"),
    ],
)
def test_the_place_is_the_innermost_line_that_is_the_users(source: str, place: str) -> None:
    assert place_of(raised(source)) == place


@pytest.mark.parametrize(
    ("filename", "place"),
    [
        ("/tmp/ipykernel_123/4567.py", "<cell>:1 in f"),
        ("<ipython-input-3-0a1b2c>", "<cell>:1 in f"),
        ("/home/me/project/tools/text.py", "tools/text.py:1 in f"),
    ],
)
def test_a_cell_has_one_name_in_every_kernel(filename: str, place: str) -> None:
    assert place_of(raised("def f(): 1 / 0\nf()", filename)) == place


def test_an_error_without_a_line_of_the_user_has_a_place_all_the_same() -> None:
    outer = RuntimeError("the function raised SystemExit(3)")
    outer.__cause__ = raised("def f(): raise SystemExit(3)\nf()")
    assert place_of(outer) == "<cell 7>:1 in f"
    assert place_of(TypeError("missing an argument")) == "the call"
    ring = RuntimeError("a")
    ring.__context__ = ring
    assert place_of(ring) == "the call"


def test_a_result_that_cannot_be_answered_has_the_place_of_its_function() -> None:
    names: dict[str, Any] = {}
    source = "import functools\nclass App:\n  def act(self): pass\ndef f(): pass"
    exec(compile(source, "<cell 7>", "exec"), names)
    for function, place in (
        (names["f"], "<cell 7>:4 in f"),
        (names["App"]().act, "<cell 7>:3 in act"),
        (functools.partial(names["f"]), "<cell 7>:4 in f"),
        (functools.wraps(names["f"])(lambda: None), "<cell 7>:4 in f"),
    ):
        output = output_of("f", int, defined_at(function))
        with pytest.raises(TypeError) as caught:
            output.to_json("notint")
        assert place_of(caught.value) == place
        with pytest.raises(TypeError) as caught:
            output.to_frame(lambda value: [][1], 1)  # type: ignore[misc]
        assert place_of(caught.value) == place
    assert defined_at(print) == ""


def test_types_have_their_module_unless_it_says_nothing() -> None:
    assert type_name(ValueError()) == "ValueError"
    assert type_name(StoreError()) == "fal_notebook.exceptions.StoreError"
    assert type_name(raised("class Odd(Exception): pass\nraise Odd")) == "Odd"


class Slow:
    def __repr__(self) -> str:
        raise RuntimeError("my own repr")


def test_inputs_are_shown_as_far_as_they_are_short() -> None:
    assert shown.call((1, "a"), {"k": [{"x": 2.5}]}) == "1, 'a', k=[{'x': 2.5}]"
    assert "Slow" in shown.call((Slow(),), {})
    assert shown.body(b'{"x": 1}') == '{"x": 1}'
    assert shown.body(b"x" * 20_000).endswith("… (20000 bytes in all)")
    assert shown.cut("a\ud800b", 10) == r"a\ud800b"
    begin = time.monotonic()
    nested: Any = 1.5
    for _ in range(4):
        nested = [nested] * 2000
    for value in (nested, "x" * 10_000_000, b"x" * 10_000_000, dict.fromkeys(range(5000), nested)):
        assert len(shown.call((value,), {})) < 20_000
    assert time.monotonic() - begin < 10


def test_what_fails_while_the_link_is_busy_is_told_together() -> None:
    due: list[int] = []
    failures = Failures(lambda: due.append(1))
    error = raised("def f(): raise ValueError('x' * 1000)\nf()")
    for number in range(5000):
        failures.add(error, "t" * 50_000, lambda number=number: f"input {number}")
    (told,) = failures.take()
    assert (told["count"], told["type"], told["input"]) == (5000, "ValueError", "input 4999")
    assert len(told["message"]) < 600
    assert len(told["traceback"]) < 17_000
    assert (len(due), failures.take()) == (5000, [])


def test_a_secret_is_taken_out_of_a_message_before_it_is_cut() -> None:
    failures = Failures(lambda: None)
    error = ValueError("x" * 495 + "horse battery")
    for redact, told in ((str, "xhorse…"), (hiding({"WORDS": "horse battery"}), "x[secr…")):
        failures.redact = redact
        failures.add(error, "", str)
        assert told in failures.take()[0]["message"]


def test_a_traceback_that_is_cut_keeps_its_frames_and_its_end() -> None:
    failures = Failures(lambda: None)
    failures.add(ValueError(), "File a, line 1\n" + "x" * 99_999 + "the end", str)
    told = failures.take()[0]["traceback"]
    assert told.startswith("File a, line 1\n")
    assert told.endswith("the end")
    assert len(told) < 17_000


def test_what_no_gateway_hears_is_kept_up_to_a_limit() -> None:
    failures = Failures(lambda: None)
    for number in range(300):
        error = raised("\n" * number + "raise ValueError")
        failures.add(error, "", str)
    failures.add(error, "", str)
    reports = failures.take()
    assert len(reports) == KEPT
    assert reports[-1]["count"] == 2
    assert failures.take() == []


async def test_a_failure_is_told_before_its_answer_may_be_sent() -> None:
    link, sent, leave = Link(), list[bytes](), asyncio.Event()

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Any:
        await leave.wait()
        return {"type": "http.disconnect"}

    await link.told()  # nobody is there to hear
    serving = asyncio.ensure_future(link.serve(receive, send))
    await until(lambda: link.gateways)
    link.failures.add(ValueError("v"), "text", str)
    await link.told()
    assert b"ValueError" in b"".join(sent)
    leave.set()
    await serving


# --- what the gateway keeps ---------------------------------------------------------------------


@pytest.fixture
def store(store: Store) -> Store:
    """The store with an app."""
    with store.transaction():
        store.put(App("me", "app", None, "", {}))
    return store


def plain(store: Store) -> Redaction:
    return Redaction(store, Vault(Path("/nonexistent")))


def failure(place: str = "here", count: int = 1, at: float = 1.0, **values: Any) -> ErrorGroup:
    kept = {"request": f"r{at}", "message": "", "traceback": "", "input": "", **values}
    return ErrorGroup("me", "app", "ValueError", place, count, at, at, revision=1, **kept)


async def test_groups_add_up_and_show_the_newest(store: Store) -> None:
    told: list[dict[str, Any]] = []
    errors = Errors(store, lambda owner, app, data: told.append(data), plain(store))
    errors.record(failure(at=1.0))
    (group,) = store.select(ErrorGroup)
    assert group == failure(at=1.0)
    errors.record(failure(at=2.0, count=5))
    errors.record(failure(at=3.0, input="newest"))
    assert store.select(ErrorGroup) == [group]  # nothing more within the second
    errors.write()  # but for who asks
    (group,) = store.select(ErrorGroup)
    assert (group.count, group.first_seen, group.last_seen) == (7, 1.0, 3.0)
    assert (group.request, group.input) == ("r3.0", "newest")
    assert [data["count"] for data in told] == [1, 6]
    errors.close()


async def test_an_app_has_a_limited_number_of_groups(store: Store) -> None:
    errors = Errors(store, lambda *told: None, plain(store))
    for number in range(GROUPS + 50):
        errors.record(failure(f"line {number}", at=float(number)))
    errors.close()
    groups = store.select(ErrorGroup)
    assert len(groups) == GROUPS
    assert min(group.last_seen for group in groups) == 50.0
    store.forget_errors(1000.0)
    assert len(store.select(ErrorGroup)) == 50


async def test_groups_go_with_their_app(store: Store) -> None:
    errors = Errors(store, lambda *told: None, plain(store))
    errors.record(failure())
    with store.transaction():
        store.delete_app("me", "app")
    errors.record(failure())  # a runner that still drains
    errors.close()
    assert store.select(ErrorGroup) == []


async def test_an_app_of_the_name_of_a_deleted_one_has_none_of_its_failures(store: Store) -> None:
    errors = Errors(store, lambda *told: None, plain(store))
    errors.record(failure("first"))
    errors.record(failure("second"))
    with store.transaction():
        store.delete_app("me", "app")
        errors.forget("me", "app")
        store.put(App("me", "app", None, "", {}))
    errors.close()
    assert store.select(ErrorGroup) == []


async def test_what_could_not_be_written_is_written_later(store: Store) -> None:
    errors = Errors(store, lambda *told: None, plain(store))
    store._db.execute("PRAGMA query_only = ON")
    errors.record(failure(at=1.0))
    errors.record(failure(at=2.0))
    store._db.execute("PRAGMA query_only = OFF")
    errors.close()
    assert [group.count for group in store.select(ErrorGroup)] == [2]


async def test_a_secret_shows_in_no_part_of_a_group(store: Store) -> None:
    told: list[dict[str, Any]] = []
    redaction, key = plain(store), "frk_" + "0a" * 32
    redaction.learn({"WORDS": "horse battery"})
    errors = Errors(store, lambda owner, app, data: told.append(data), redaction)
    parts = ("type", "place", "message", "traceback", "input")
    for value in (key, "horse battery"):
        group = failure()
        vars(group).update(dict.fromkeys(parts, f"of {value}"))
        errors.record(group)
    errors.close()
    kept = [{vars(group)[name] for name in parts} for group in store.select(ErrorGroup)]
    assert kept == [{"of [secret FAL_KEY]"}, {"of [secret WORDS]"}]
    assert key not in str(told)


# --- real apps ----------------------------------------------------------------------------------


def test_each_way_to_fail_is_counted_once(
    gateway: GatewayInfo, fails: Handle, eventually: Any
) -> None:
    before, url = counts(fails), run_url(gateway, fails)
    statuses = [
        httpx.post(url, json={"how": how, "n": n}, timeout=30).status_code
        for how, n in [
            *[("value", 1), ("odd", 2), ("library", 0), ("refuse", 503), ("exit", 0)],
            *[("result", 0), ("refuse", 404), ("fine", 1), ("answer", 500), ("answer", 429)],
        ]
    ]
    assert statuses == [500, 500, 500, 503, 500, 500, 404, 200, 500, 429]
    assert httpx.post(url, json={"n": 1}).status_code == 422
    for how in ("value", "odd"):
        with pytest.raises(Exception, match="7"):
            fails(how, n=7)
    with pytest.raises(TypeError):
        fails(1, 2, 3, 4)
    wanted = {
        "ValueError": 2,
        "Odd": 2,
        "json.decoder.JSONDecodeError": 1,
        "fastapi.exceptions.HTTPException": 1,
        "SystemExit": 1,
        "TypeError": 2,
        "HTTP 500": 1,
    }
    with contextlib.suppress(AssertionError):
        eventually(lambda: grown(fails, before) == wanted)
    time.sleep(1.5)
    assert grown(fails, before) == wanted


def test_failures_are_counted_of_a_runner_that_is_killed_soon(
    gateway: GatewayInfo, fails: Handle, eventually: Any
) -> None:
    before, url = counts(fails), run_url(gateway, fails)
    asked = [("value", 1)] * 5 + [("refuse", 600), ("refuse", 503)]
    answers = [httpx.post(url, json={"how": how, "n": n}, timeout=30) for how, n in asked]
    assert [answer.status_code for answer in answers] == [500] * 6 + [503]
    wanted = {
        "ValueError": 5,
        "fastapi.exceptions.HTTPException": 1,
        "fal_notebook.runner.sendable.UnsendableError": 1,
    }
    eventually(lambda: grown(fails, before) == wanted)


ESCAPES = """
import asyncio
class Own(BaseException): pass
def stops(n: int): raise [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), Own("mine")][n]
"""
NAMES = ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "Own"]
LOOKS = {
    "thread": "def f(n: int): stops(n)",
    "loop": "async def f(n: int):\n    await asyncio.sleep(0)\n    stops(n)",
    "generator": "def f(n: int):\n    yield 1\n    stops(n)",
    "async generator": "async def f(n: int):\n    yield 1\n    stops(n)",
    "fastapi": "from fastapi import Query\ndef f(n: int, q: int = Query(1)): stops(n)",
}


def outcome(call: Any) -> Any:
    """Return what a call gives, of a generator the last value."""
    result = call()
    return list(result)[-1] if isinstance(result, Iterator) else result


@pytest.mark.parametrize("look", LOOKS)
def test_what_would_end_a_program_has_its_own_group(
    gateway: GatewayInfo, eventually: Any, look: str
) -> None:
    with deployed(ESCAPES + LOOKS[look], serve=True, auth="public", max_concurrency=1) as f:
        runner = f.runners()[0]["id"]
        for n, name in enumerate(NAMES):
            answer = httpx.post(run_url(gateway, f), json={"n": n}, timeout=30)
            if "generator" in look:
                assert "event: error" in answer.text
            else:
                assert answer.status_code == 500
                assert answer.json() == {"detail": "Internal Server Error"}
                assert answer.headers["x-fal-error-type"] == "runner_server_error"
            if look == "fastapi":  # it takes JSON only
                continue
            asked = f.submit(n)
            for call in (lambda: f(n), asked.result):  # noqa: B023
                with pytest.raises(RemoteError, match=rf"^{name}") as caught:
                    outcome(call)
                assert "in stops" in str(caught.value.__cause__)
            if "generator" not in look:
                assert asked.status().error == f"the function raised {name}"
        times = 1 if look == "fastapi" else 3
        eventually(lambda: counts(f) == dict.fromkeys(NAMES, times))
        assert {g["place"].rpartition(":")[2] for g in f.errors()} == {"4 in stops"}
        assert [r["id"] for r in f.runners()] == [runner]


AROUND = {
    "RuntimeError": """
from pydantic import BaseModel, field_validator
class Model(BaseModel):
    n: int
    @field_validator("n")
    @classmethod
    def check(cls, n): raise RuntimeError
def f(model: Model): pass
""",
    "SystemExit": """
from typing import Annotated
from pydantic import AfterValidator
def check(n): raise SystemExit
def f(n: Annotated[int, AfterValidator(check)]): pass
""",
    "KeyError": """
from fastapi import Depends
def check(n: int = 1): raise KeyError
def f(n: int = Depends(check)): pass
""",
    "fastapi.exceptions.ResponseValidationError": """
from fastapi import Query
def f(n: int = Query(1)) -> int: return "no number"
""",
    "Mute": """
class Mute(Exception):
    def __str__(self): raise ValueError
def f(n: int): raise Mute
""",
}


@pytest.mark.parametrize("kind", AROUND)
def test_what_fails_around_a_function_is_counted_too(
    gateway: GatewayInfo, eventually: Any, kind: str
) -> None:
    with deployed(AROUND[kind], serve=True, auth="public") as f:
        answer = httpx.post(run_url(gateway, f), json={"n": 1}, timeout=30)
        assert (answer.status_code, answer.json()) == (500, {"detail": "Internal Server Error"})
        assert answer.headers["x-fal-error-type"] == "runner_server_error"
        (group,) = eventually(f.errors)
        assert (group["type"], group["count"]) == (kind, 1)
        assert group["place"].rpartition(" ")[2] in ("check", "f")


def test_a_cancel_that_nobody_asked_for_is_an_error(gateway: GatewayInfo, eventually: Any) -> None:
    source = "import asyncio\nasync def f():\n    raise asyncio.CancelledError('mine')"
    with deployed(source, serve=True, auth="public") as f:
        status = httpx.post(run_url(gateway, f), json={}).status_code
        if sys.version_info < (3, 11):  # which cannot tell who cancelled
            assert status == 499
            return
        assert status == 500
        with pytest.raises(RemoteError, match="CancelledError: mine"):
            f()
        eventually(lambda: counts(f) == {"asyncio.exceptions.CancelledError": 2})


def sample(handle: Handle, **wanted: Any) -> dict[str, Any]:
    for group in handle.errors():
        if all(group[name] == value for name, value in wanted.items()):
            return handle.error(group["request"])
    return {}


def test_a_sample_has_input_traceback_and_place(
    gateway: GatewayInfo, fails: Handle, eventually: Any
) -> None:
    answer = httpx.post(run_url(gateway, fails), json={"how": "library", "n": 42})
    request = answer.headers["x-fal-request-id"]
    found = eventually(lambda: sample(fails, request=request))
    assert found["type"] == "json.decoder.JSONDecodeError"
    assert found["place"].startswith("<cell ")
    assert found["place"].endswith(">:9 in deep")
    assert "return json.loads(text)" in found["traceback"]
    assert found["input"].replace(" ", "") == '{"how":"library","n":42}'
    assert (found["revision"], found["message"][:9]) == (1, "Expecting")
    answer = httpx.post(run_url(gateway, fails), json={"how": "result"})
    request = answer.headers["x-fal-request-id"]
    found = eventually(lambda: sample(fails, request=request))
    assert found["place"].endswith(">:11 in fails")
    with pytest.raises(ValueError, match="1234"):
        fails("value", n=1234)
    found = eventually(lambda: sample(fails, message="bad 1234"))
    assert found["input"] == "'value', n=1234"
    with pytest.raises(NotFoundError, match="is not the sample"):
        fails.error("nothing")
    with pytest.raises(NotFoundError, match="there is no app"):
        Handle("tester", "nowhere").errors()


def told_when_done(url: str) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(url).json()
    return told if told["status"] == "COMPLETED" else {}


def test_what_a_streaming_response_raises_has_type_place_and_traceback(
    gateway: GatewayInfo, eventually: Any
) -> None:
    with deployed(RESPONSE, serve=True, auth="public") as handle:
        with httpx.stream("POST", run_url(gateway, handle), json={"n": 7}) as answer:
            pieces = answer.iter_text()
            assert next(pieces) == "first"
            with pytest.raises(httpx.RemoteProtocolError):
                next(pieces)
        found = eventually(lambda: counts(handle).get("Midway") and sample(handle, type="Midway"))
        assert found["place"].endswith("in parts")
        assert (found["message"], "raise Midway(n)" in found["traceback"]) == ("7", True)
        queued = httpx.post(run_url(gateway, handle).replace("/run/", "/queue/"), json={"n": 8})
        done = eventually(lambda: told_when_done(queued.json()["status_url"]))
        assert (done["error_type"], done["error"]) == (
            "runner_server_error",
            "the app failed as it answered",
        )
        eventually(lambda: counts(handle) == {"Midway": 2})


def test_generators_and_async_functions_are_counted(gateway: GatewayInfo, eventually: Any) -> None:
    public = {"serve": True, "auth": "public", "max_multiplexing": 5}
    with deployed(STREAM, **public) as streams:
        assert "event: error" in httpx.post(run_url(gateway, streams), json={"n": 2}).text
        with pytest.raises(Exception, match="after 3"):
            list(streams(3))
        eventually(lambda: counts(streams) == {"Late": 2})
        assert {g["place"].rpartition(":")[2] for g in streams.errors()} == {"6 in streams"}
    with deployed(ASYNC, **public) as awaits:
        url = run_url(gateway, awaits)

        def ask(n: int) -> int:
            return httpx.post(url, json={"n": n % 2}, timeout=30).status_code

        with ThreadPoolExecutor(8) as threads:
            assert sorted(threads.map(ask, range(100))) == [200] * 50 + [500] * 50
        with pytest.raises(ZeroDivisionError):
            awaits(0)
        eventually(lambda: counts(awaits) == {"ZeroDivisionError": 51})
        asked = awaits.submit(0)
        with pytest.raises(ZeroDivisionError):
            asked.result()
        eventually(lambda: counts(awaits) == {"ZeroDivisionError": 52})
        assert sample(awaits, request=asked.request_id)["input"] == "0"


def test_a_flood_of_errors_loses_none(gateway: GatewayInfo, fails: Handle, eventually: Any) -> None:
    before = counts(fails)
    with ThreadPoolExecutor(16) as threads, httpx.Client(timeout=30) as client:
        body, url = {"how": "odd", "n": 5}, run_url(gateway, fails)
        answers = [threads.submit(client.post, url, json=body) for _ in range(800)]
        assert {answer.result().status_code for answer in answers} == {500}
    eventually(lambda: grown(fails, before) == {"Odd": 800})


def test_failures_of_the_platform_are_counted(
    gateway: GatewayInfo, fails: Handle, eventually: Any
) -> None:
    before, url = counts(fails), run_url(gateway, fails)
    answer = httpx.post(url, json={"how": "die"}, timeout=30)
    assert answer.status_code == 503
    found = eventually(lambda: sample(fails, request=answer.headers["x-fal-request-id"]))
    assert (found["type"], found["input"]) == ("runner_disconnected", '{"how":"die"}')
    assert found["place"].startswith("runner ")
    with pytest.raises(Exception, match="503"):
        fails("die")
    asked = fails.with_options(no_retry=True).submit("die")
    with pytest.raises(Exception, match="503"):
        asked.result()
    found = eventually(lambda: sample(fails, request=asked.request_id))
    assert found["input"].startswith("(a call from Python")
    time.sleep(1.2)
    assert grown(fails, before) == {"runner_disconnected": 3}


STOPS = """
import time
from starlette.responses import JSONResponse
def stops(seconds: float = 0):
    time.sleep(seconds)
    return JSONResponse({}, 200, {} if seconds else {"x-fal-stop-runner": "1"})
"""


def test_who_lost_a_runner_to_another_request_hears_to_which(
    gateway: GatewayInfo, eventually: Any
) -> None:
    options = {"serve": True, "auth": "public", "max_multiplexing": 2, "max_concurrency": 1}
    with deployed(STOPS, **options) as stops, ThreadPoolExecutor(1) as threads:
        url = run_url(gateway, stops)
        lost = threads.submit(httpx.post, url, json={"seconds": 30}, timeout=60)
        eventually(lambda: stops.status()["in_flight"] == 1)
        request = httpx.post(url, json={}, timeout=60).headers["x-fal-request-id"]
        why = f"(x-fal-stop-runner in the answer of request {request})"
        assert lost.result().json()["detail"].endswith(why)
        assert sample(stops, type="runner_disconnected")["message"].endswith(why)


def test_a_request_that_takes_too_long_is_counted(gateway: GatewayInfo, eventually: Any) -> None:
    source = SOURCE.replace("def fails", "def slow")
    with deployed(source, serve=True, auth="public", request_timeout=1) as slow:
        httpx.post(run_url(gateway, slow), json={"how": "wait"}, timeout=30)
        eventually(lambda: counts(slow) == {"request_timeout": 1})


def test_a_follower_of_events_hears_of_failures(gateway: GatewayInfo, fails: Handle) -> None:
    with control(gateway) as client:
        query = {"owner": "tester", "app": fails.name, "since": 10**9}
        with client.stream("GET", "/api/events", params=query) as events:
            httpx.post(run_url(gateway, fails), json={"how": "value"})
            lines = events.iter_lines()
            assert next(line for line in lines if line == "event: error")
            assert '"count": 1' in next(lines)


def test_each_failure_is_there_for_who_asks_at_once(gateway: GatewayInfo, fails: Handle) -> None:
    for number in range(20):
        answer = httpx.post(run_url(gateway, fails), json={"how": "value", "n": number})
        found = sample(fails, request=answer.headers["x-fal-request-id"])
        assert found["message"] == f"bad {number}"


def test_an_app_that_is_deployed_anew_begins_without_failures(gateway: GatewayInfo) -> None:
    for _ in range(3):
        with deployed("def anew():\n    1 / 0\n") as anew:
            with pytest.raises(ZeroDivisionError):
                anew()
            assert counts(anew) == {"ZeroDivisionError": 1}


def test_the_command_shows_groups_and_a_sample(
    gateway: GatewayInfo, fails: Handle, eventually: Any
) -> None:
    answer = httpx.post(run_url(gateway, fails), json={"how": "value", "n": 99})
    request = answer.headers["x-fal-request-id"]
    eventually(lambda: sample(fails, request=request))

    def run(*arguments: str) -> str:
        return "\n".join(cli.as_lines(cli.run(["errors", *arguments], "fal-notebook")))

    table = run("fails").splitlines()
    assert table[0].split()[-3:] == ["last", "seen", "request"]
    assert any(line.startswith("ValueError ") and line.endswith(request) for line in table)
    text = run("fails", "--request", request)
    assert "bad 99" in text
    assert '"n":99' in text
    assert "Traceback (most recent call last):" in text
    with deployed(ASYNC) as quiet:
        assert run(quiet.name) == "no request of the app has failed"
    html = cli.run(["errors", "fails", "--request", request], "fal-notebook")._repr_html_()
    assert "&lt;cell" in html


# --- a gateway of its own -----------------------------------------------------------------------


def test_errors_outlive_their_gateway_and_those_meanwhile_are_told(
    state: Path, eventually: Any
) -> None:
    source = "import threading, time\ndef who(x: float = 0):\n    time.sleep(x)\n    1 / 0\n"
    first = discovery.ensure(state)
    deploy(first, source, min_concurrency=1)

    def groups(info: GatewayInfo) -> list[tuple[str, int]]:
        with control(info) as client:
            found = client.get("/api/apps/tester/who/errors").json()
        return [(group["type"], group["count"]) for group in found]

    assert httpx.post(f"{first.url}/run/tester/who", json={}).status_code == 500
    eventually(lambda: groups(first) == [("ZeroDivisionError", 1)])
    with Wire(first) as wire:
        wire.send(post("/run/tester/who", {"x": 1}))
        with control(first) as client:
            eventually(lambda: client.get("/api/apps/tester/who").json()["in_flight"] == 1)
        end(first, state, signal.SIGKILL)
        with contextlib.suppress(ConnectionError):
            wire.rest()
    time.sleep(1.5)  # the error happens while nobody listens
    second = discovery.ensure(state)
    eventually(lambda: groups(second) == [("ZeroDivisionError", 2)])
    for _ in range(5):
        assert httpx.post(f"{second.url}/run/tester/who", json={}).status_code == 500
    stop(second, state)  # at once: a runner that ends tells what it has not told yet
    third = discovery.ensure(state)
    assert groups(third) == [("ZeroDivisionError", 7)]
