"""An App class: what it may say, how a runner serves it, how it is deployed and called."""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_type_hints

import pytest
from fastapi import UploadFile
from IPython.core.error import UsageError
from runner_bench import Bench, LiveRunner, define, notebook
from serving import control

import fal_notebook as fal
from fal_notebook.app_definition import app_name_of, options_of
from fal_notebook.deploying import dry_run
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import AppDefinitionError, FalNotebookError, OptionError
from fal_notebook.options import split_options
from fal_notebook.payload import capture
from fal_notebook.runner.fastapi_places import Places

HEAD = """
from __future__ import annotations
import asyncio, os, threading, time
from typing import Annotated, Any, Iterator
import fal_notebook as fal; from functools import cached_property
from fastapi import BackgroundTasks, Depends, Header, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from fal_notebook.exceptions import AppException, FieldException, RequestCancelledException
from pydantic import BaseModel, Field
class Prompt(BaseModel):
    prompt: str = Field(description="what to draw", json_schema_extra={"ui": {"important": True}})
    steps: int = 3
class Drawn(BaseModel):
    text: str
def shout(text):
    return text.upper()
class Base(fal.App, keep_alive=7):
    def setup(self):
        self.made = threading.get_ident()
        self.count = 0
    @fal.endpoint("/count")
    def counted(self) -> int:
        self.count += 1
        return self.count
"""


def app_in(source: str, name: str = "A") -> Any:
    with notebook():
        return define(HEAD + source)[name]


@pytest.fixture(autouse=True)
def _no_runner_is_left(bench: Bench) -> Iterator[None]:
    yield
    bench.end_runners()


def start(bench: Bench, body: str, **spec: Any) -> LiveRunner:
    return bench.start(HEAD + "class A(Base):\n" + body, entry="A", **spec)


def post(runner: LiveRunner, path: str, body: Any = None, **headers: str) -> Any:
    content = b"" if body is None else json.dumps(body).encode()
    with runner.client() as client:
        return client.post(path, content=content, headers=headers)


# --- what a class may say -----------------------------------------------------------------------
METHOD = "class A(fal.App):\n    @fal.endpoint({})\n    def f(self): pass"
REFUSED = {
    "class A(fal.App, keep_alives=3): pass": (
        "class `A` (line 25): unknown option 'keep_alives'; did you mean 'keep_alive'?"
    ),
    "class A(fal.App):\n    keep_alive = 'long'": "class `A` (line 25): keep_alive='long' is not",
    "class A(fal.App):\n    def __init__(self): pass": "class `A`: __init__ (line 26) cannot be",
    "class A(Base):\n    @fal.endpoint('/count')\n    def other(self): pass": (
        "class `A`: `other` (line 26) has the path '/count', which is that of `counted`"
    ),
    METHOD.format("'x'"): "`A.f` (line 26) has the path 'x', which does not begin with '/'",
    METHOD.format("'/a', health_check={'path': '/h'}"): (
        "endpoint `A.f` (line 26) has health_check={'path': '/h'}; write health_check="
    ),
    METHOD.format("'/a', health_check=fal.HealthCheck(path='/h')"): (
        "endpoint `A.f` (line 26) is at '/a', and its health check asks '/h'; leave path out there"
    ),
    METHOD.format("'/a', health_check=fal.HealthCheck()") + "\n    health_check = {'path': '/h'}": (
        "health_check is an option of the class and a mark of /a; keep one"
    ),
    METHOD.format("'/a', is_websocket=True, health_check=fal.HealthCheck()"): (
        "endpoint `A.f` (line 26) is a WebSocket and no health check"
    ),
    "class A(fal.App):\n    retry_config = fal.RetryConfig()": "RetryConfig: at least one of",
    "class A(fal.App):\n    retry_config = fal.RetryConfig(timeouts=1)": "did you mean 'timeout'?",
    "fal.HealthCheck(failure_threshold=0)": "HealthCheck: failure_threshold=0 is not allowed",
    "fal.HealthCheck(threshold=2)": "HealthCheck: unknown option 'threshold'",
    METHOD.format("'/a b'"): "has the path '/a b', which no request can have",
    METHOD.format("'/a/{x'"): "'/a/{x'; write a part that varies as in '/items/{name}'",
    METHOD.format("'/a/{x:what}'"): "write a part that varies as in",
    METHOD.format("'/../a'"): "has the path '/../a', which no request can have",
    METHOD.format("'/a/{x}?y'"): "has the path '/a/{x}?y', which no request can have",
    "class A(fal.App, setup_function=print): pass": "an app has the method setup(self)",
    METHOD.format("'/requests'"): "belongs to the queue",
    "class A(fal.App):\n    @fal.endpoint\n    def f(self): pass": (
        "endpoint `A.f` (line 26) has no path; write @fal.endpoint('/f')"
    ),
    "class A(fal.App):\n    @fal.realtime\n    def f(self, n: int): pass": (
        "endpoint `A.f` (line 26) has no path; write @fal.realtime('/f')"
    ),
    "class A(fal.App):\n    @fal.endpoint('/')\n    @staticmethod\n    def f(x): pass": (
        "endpoint `A.f` (line 26) is no plain method"
    ),
    "class A(fal.App):\n    @fal.endpoint('/')\n    async def f(*, x): pass": (
        "endpoint `A.f` (line 26) takes no self"
    ),
    "class A(fal.App):\n    @fal.endpoint('/')\n    def f(x: int): pass": (
        "endpoint `A.f` (line 26) begins with `x`; put self before it"
    ),
    **{
        f"class A(fal.App):\n    @{above}\n    @fal.endpoint('/')\n    def f(self): pass": (
            "class `A`: endpoint `A.f` (line 26) is no plain method; put @endpoint on a def"
        )
        for above in ("classmethod", "staticmethod", "property", "cached_property")
    },
    "class A(fal.App):\n    @fal.endpoint('/')\n    @property\n    def f(self): pass": (
        "endpoint `A.f` (line 26) is no plain method"
    ),
    "class A(fal.App):\n    def setup(self, model): pass": (
        "class `A`: setup (line 26) takes model, which no runner gives it; leave it out"
    ),
    "class A(fal.App):\n    def setup(): pass": "class `A`: setup (line 26) takes no self; write",
    "class A(fal.App):\n    @fal.endpoint('/')\n    @fal.cached\n"
    "    def f(self): pass": "endpoint `A.f` (line 26) is no plain method",
    METHOD.format("'/a')\n    @fal.endpoint('/b'"): "has two paths, '/b' and '/a'",
}


@pytest.mark.parametrize(("source", "sentence"), REFUSED.items(), ids=[s[:45] for s in REFUSED])
def test_a_wrong_class_is_refused_when_it_is_defined(source: str, sentence: str) -> None:
    with pytest.raises((AppDefinitionError, OptionError)) as refusal:
        app_in(source)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_options_come_from_keywords_attributes_and_bases() -> None:
    source = """
class A(Base, max_concurrency=2):
    machine_type = "GPU-A100"
    app_auth = "public"
    min_concurrency = 1
    model_name = "mine"
    @fal.endpoint("/ready", health_check=fal.HealthCheck(failure_threshold=2))
    def ready(self): pass
"""
    options = options_of(app_in(source))
    check = options.pop("health_check")
    assert (check.path, check.failure_threshold, check.method) == ("/ready", 2, "POST")
    assert options == {
        "keep_alive": 7,
        "max_concurrency": 2,
        "min_concurrency": 1,
        "machine_type": "GPU-A100",
        "auth": "public",
    }


def test_an_attribute_that_is_almost_an_option_is_noted_and_a_port_refused() -> None:
    app = app_in("class A(Base):\n    keep_alives = 3\n    keeper = 4\n    target = 'docker'\n")
    said = [
        "the attribute `keep_alives` of `A` is no option; did you mean keep_alive?",
        "the attribute `target` of `A` is no option; write target=… behind the class's bases, or "
        "on the line",
    ]
    with notebook():
        assert dry_run(app, *split_options({}), "")[2] == said
        with pytest.raises(OptionError, match="exposed_port is for servers"):
            dry_run(app, *split_options({"exposed_port": 9000}), "")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MyServerProxy", "my-server-proxy"),
        ("Model2", "model2"),
        ("a_b", "a_b"),
        ("ONNX", "o-n-n-x"),
    ],
)
def test_the_app_is_named_after_the_class(name: str, expected: str) -> None:
    assert app_name_of(type(name, (), {})) == expected


def test_retries_are_counted_briefly() -> None:
    config = fal.RetryConfig(2, server_error=3)
    assert config.server_error is not None
    assert config.server_error.retries == 3
    assert config.timeout is not None
    assert config.timeout.retries == 2
    assert pickle.loads(pickle.dumps(config)) == config == fal.RetryConfig(**config.model_dump())
    assert fal.HealthCheck(timeout_seconds=None, method="GET").timeout_seconds == 5


def test_what_is_left_out_is_named() -> None:
    with pytest.raises(FalNotebookError, match="fal's sync_dir is not part of fal_notebook"):
        _ = fal.sync_dir


def test_an_app_without_endpoints_is_refused_at_deploy() -> None:
    with pytest.raises(AppDefinitionError, match="class `A` has no endpoint"):
        fal.deploy(app_in("class A(fal.App): pass"))


# --- how it is served ---------------------------------------------------------------------------
def test_endpoints_share_one_instance_that_was_set_up_in_its_thread(bench: Bench) -> None:
    body = """
    @fal.endpoint("/")
    def draw(self, input: Prompt) -> Drawn:
        same = self.made == threading.get_ident()
        return Drawn(text=f"{shout(input.prompt)} {input.steps} {same}")
    @fal.endpoint("/plain")
    async def plain(self, a: int, b: str = "x") -> dict:
        return {"a": a, "b": b, "running": os.environ["FAL_RUNNER_STATE"]}
"""
    runner = start(bench, body)
    assert post(runner, "/", {"prompt": "hi"}).json() == {"text": "HI 3 True"}
    assert post(runner, "/plain", {"a": 2}).json() == {"a": 2, "b": "x", "running": "RUNNING"}
    assert [post(runner, "/count").json() for _ in range(2)] == [1, 2]
    assert post(runner, "/", {"prompt": 1}).status_code == 422
    missing = post(runner, "/nowhere", {})
    assert (missing.status_code, missing.json()) == (404, {"detail": "Path /nowhere not found"})
    with runner.client() as client:
        assert client.get("/").status_code == 405
        assert client.get("/health").json() == {"version": "unknown"}
        assert client.get("/count").headers["allow"] == "POST"


def test_a_slash_at_the_end_of_a_path_may_be_there_or_not(bench: Bench) -> None:
    body = """
    @fal.endpoint("/echo")
    def echo(self, text: str) -> str:
        return text
    @fal.endpoint("/slashed/")
    def slashed(self, text: str) -> str:
        return text
    @fal.endpoint("/items/{name}")
    def item(self, name: str, text: str) -> str:
        return name + text
    @fal.endpoint("/tree/{name:path}")
    def tree(self, name: str) -> str:
        return name
"""
    runner = start(bench, body)
    for path in ("/echo", "/echo/", "/slashed/", "/slashed"):
        assert post(runner, path, {"text": "a"}).json() == "a", path
    for path in ("/items/n", "/items/n/"):
        assert post(runner, path, {"text": "a"}).json() == "na"
    assert post(runner, "/tree/a/", {}).json() == "a/"
    for path in ("/", "//", "/echo//", "/nowhere/"):
        assert post(runner, path, {"text": "a"}).status_code == 404, path
    with runner.client() as client:
        assert client.get("/echo/").status_code == 405


def test_the_document_names_every_endpoint_in_order(bench: Bench) -> None:
    body = """
    @fal.endpoint("/z")
    def zed(self, input: Prompt) -> Drawn:
        '''Draw.'''
    @fal.endpoint("/a")
    def one(self, token: Annotated[str, Header()], n: int) -> Drawn: pass
"""
    document = start(bench, body).openapi()
    assert document["x-fal-order-paths"] == ["/count", "/z", "/a"]
    operation = document["paths"]["/z"]["post"]
    assert (operation["operationId"], operation["description"]) == ("zed", "Draw.")
    prompt = document["components"]["schemas"]["Prompt"]
    assert prompt["x-fal-order-properties"] == ["prompt", "steps"]
    assert prompt["properties"]["prompt"]["ui"] == {"important": True}
    assert document["paths"]["/a"]["post"]["parameters"][0]["in"] == "header"
    assert "requestBody" in document["paths"]["/a"]["post"]


ERRORS = {
    "HTTPException(418, 'tea', headers={'x-a': '1'})": (418, "tea"),
    "AppException('no credit', 402)": (402, "no credit"),
    "FieldException('prompt', 'too rude')": (
        422,
        [{"loc": ["body", "prompt"], "msg": "too rude", "type": "value_error"}],
    ),
    "RequestCancelledException()": (499, "Request cancelled by the client."),
    "ValueError('boom')": (500, "Internal Server Error"),
    "RuntimeError('CUDA out of memory')": (503, "CUDA error: out of memory"),
    "OSError('cuDNN is sad')": (503, "GPU error"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_errors_say_what_the_caller_is_answered(bench: Bench, error: str) -> None:
    body = f"""
    @fal.endpoint("/fail")
    def fail(self): raise {error}
    @fal.endpoint("/depends")
    def depends(self, here: Annotated[int, Depends(lambda: 1)]): raise {error}
"""
    runner = start(bench, body)
    for path in ("/fail", "/depends"):
        reply = post(runner, path, {})
        assert (reply.status_code, reply.json()["detail"]) == ERRORS[error]
        assert (reply.headers.get("x-fal-stop-runner") == "1") is (reply.status_code == 503)


KINDS = {
    "sync": "def {0}(self, n: int)",
    "async": "async def {0}(self, n: int)",
    "fastapi": "def {0}(self, n: int, here: Annotated[int, Depends(lambda: 1)])",
    "async fastapi": "async def {0}(self, n: int, here: Annotated[int, Depends(lambda: 1)])",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_answers_an_error_before_its_first_item_and_sends_a_later_one(
    bench: Bench, kind: str
) -> None:
    body = "".join(
        f"""
    @fal.endpoint("/{number}")
    {KINDS[kind].format(f"fail{number}")}:
        for i in range(n): yield i
        raise {error}
"""
        for number, error in enumerate(ERRORS)
    )
    runner = start(bench, body)
    for number, (status, detail) in enumerate(ERRORS.values()):
        reply = post(runner, f"/{number}", {"n": 0})
        assert (reply.status_code, reply.json()["detail"]) == (status, detail)
        assert (reply.headers.get("x-fal-stop-runner") == "1") is (status == 503)
        reply = post(runner, f"/{number}", {"n": 1})
        item, event, *_ = reply.text.split("\n\n")
        name, _, data = event.partition("\ndata: ")
        assert (reply.status_code, item, name) == (200, "data: 0", "event: error")
        assert json.loads(data) == {"status": status, "detail": detail}


def test_an_endpoint_sees_its_request(bench: Bench) -> None:
    body = """
    @fal.endpoint("/raw")
    async def raw(self, request: Request) -> str:
        return (await request.body()).decode() + request.headers["x-mine"]
    @fal.endpoint("/both")
    def both(self, input: Prompt, request: Request) -> list:
        now = self.current_request
        return [input.prompt, request.url.path, now.request_id, now.headers["x-mine"]]
    @fal.endpoint("/where")
    def where(self) -> bool:
        return fal.ref.get_current_app() is self
"""
    runner = start(bench, body)
    assert post(runner, "/raw", [1], **{"x-mine": "!"}).json() == "[1]!"
    both = post(runner, "/both", {"prompt": "p"}, **{"x-mine": "m"})
    assert both.json() == ["p", "/both", "r1", "m"]
    assert post(runner, "/where").json() is True


def test_no_endpoint_sees_the_runners_secret(bench: Bench) -> None:
    body = """
    @fal.endpoint("/plain")
    def plain(self, request: Request) -> dict:
        return dict(request.headers)
    @fal.endpoint("/other")
    def other(self, x_mine: Annotated[str, Header()]) -> dict:
        return self.current_request.headers
"""
    runner = start(bench, body)
    for path in ("/plain", "/other"):
        answer = post(runner, path, **{"x-mine": "m"})
        assert answer.json()["x-mine"] == "m"
        assert "x-fal-runner-secret" not in answer.json()


def test_fastapi_serves_what_only_it_knows(bench: Bench) -> None:
    body = """
    @fal.endpoint("/header")
    def header(self, n: int, x_mine: Annotated[str, Header()], response: Response) -> dict:
        response.headers["x-set"] = "yes"
        return {"n": n, "header": x_mine, "thread": self.made == threading.get_ident()}
    @fal.endpoint("/later")
    async def later(self, tasks: BackgroundTasks) -> str:
        tasks.add_task(self.counted)
        return "soon"
    @fal.endpoint("/items/{name}")
    def item(self, name: str) -> str:
        return name
"""
    runner = start(bench, body)
    reply = post(runner, "/header", {"n": 2}, **{"x-mine": "m"})
    assert reply.json() == {"n": 2, "header": "m", "thread": True}
    assert reply.headers["x-set"] == "yes"
    assert post(runner, "/header", {}).status_code == 422
    assert post(runner, "/later").json() == "soon"
    asked = 1
    while post(runner, "/count").json() == asked:  # the task begins when its answer was sent
        asked += 1
    assert post(runner, "/items/ab").json() == "ab"


def test_a_file_goes_over_http_alone() -> None:
    def method(f: UploadFile, n: int = 0) -> int:
        return n

    places = Places(method, get_type_hints(method), {})
    with pytest.raises(TypeError, match="the endpoint takes a file; send it over HTTP, to its url"):
        places.bound((), {"f": b"x"})
    assert places.bound((), {"n": 2})["body"] == {"n": 2}


def test_the_request_may_stand_beside_what_fastapi_gives(bench: Bench) -> None:
    body = """
    @fal.endpoint("/response")
    def response(self, request: Request, response: Response, n: int) -> str:
        response.headers["x-set"] = "yes"
        return request.headers["x-mine"] * n
    @fal.endpoint("/later")
    async def later(self, asked: Prompt, r: Request, tasks: BackgroundTasks) -> str:
        return (await r.json())["prompt"] + asked.prompt
    @fal.endpoint("/known")
    def known(self, request: Request, user: Annotated[str, Depends(lambda: "me")]) -> str:
        return request.url.path + user
    @fal.endpoint("/maybe")
    def maybe(self, user: Annotated[str | None, Depends(lambda: "me")] = None) -> str:
        return str(user)
    @fal.endpoint("/optional")
    def optional(self, n: int, request: Request | None = None) -> str:
        return request.method * n
    @fal.endpoint("/items/{name}")
    async def item(self, name: str, request: Request) -> Iterator[str]:
        yield name + request.method
"""
    runner = start(bench, body)
    assert post(runner, "/maybe", {"user": "forged"}).json() == "me"
    assert post(runner, "/optional", {"n": 2}).json() == "POSTPOST"
    reply = post(runner, "/response", {"n": 2}, **{"x-mine": "m"})
    assert (reply.json(), reply.headers["x-set"]) == ("mm", "yes")
    assert post(runner, "/later", {"prompt": "p"}).json() == "pp"
    assert post(runner, "/known").json() == "/knownme"
    assert post(runner, "/items/ab").text == 'data: "abPOST"\n\n'


def test_streams_are_events_or_what_the_response_says(bench: Bench) -> None:
    body = """
    @fal.endpoint("/events")
    def events(self, n: int) -> Iterator[Drawn]:
        for i in range(n): yield Drawn(text=str(i))
    @fal.endpoint("/own")
    async def own(self):
        async def parts():
            yield b"a"
            yield b"b"
        return StreamingResponse(parts(), media_type="text/plain")
"""
    runner = start(bench, body)
    events = post(runner, "/events", {"n": 2})
    assert events.text == 'data: {"text":"0"}\n\ndata: {"text":"1"}\n\n'
    assert events.headers["content-type"].startswith("text/event-stream")
    assert post(runner, "/own").text == "ab"


def test_hints_go_with_every_answer(bench: Bench) -> None:
    body = "    def provide_hints(self): return ['m1', 'ünicode', f'n{self.count}']\n"
    runner = start(bench, body)
    assert post(runner, "/count").headers["x-fal-runner-hints"] == "m1,n1"
    one = start(bench, "    def provide_hints(self): return 'big'\n")
    assert post(one, "/count").headers["x-fal-runner-hints"] == "big"
    assert "x-fal-runner-hints" not in post(start(bench, "    pass\n"), "/count").headers


def test_a_runner_that_ends_tells_its_app(
    bench: Bench, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    body = """
    def handle_exit(self): print("told", os.environ["FAL_RUNNER_STATE"])
    async def teardown(self): print("torn down after", self.count)
"""
    runner = start(bench, body, orphan_timeout=60)
    post(runner, "/count")
    os.kill(runner.pid, signal.SIGTERM)
    eventually(lambda: not runner.alive())
    assert runner.log()[-2:] == ["told TERMINATING", "torn down after 1"]


def test_a_cancel_route_runs_while_all_slots_are_taken(bench: Bench) -> None:
    body = """
    @fal.endpoint("/work")
    def work(self) -> str:
        self.cancelled = threading.Event()
        self.count = 1
        return "stopped" if self.cancelled.wait(20) else "late"
    @fal.endpoint("/work/cancel")
    def stop(self) -> None:
        while not self.count:
            time.sleep(0.01)
        self.cancelled.set()
"""
    runner = start(bench, body)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(post, runner, "/work")
        assert post(runner, "/work/cancel").status_code == 200
        assert working.result().json() == "stopped"


def test_a_dependency_may_name_in_its_annotations_what_nothing_else_names(bench: Bench) -> None:
    source = """
from fastapi import Query as Asked
def wanted(it: Annotated[str, Asked()]): return it
class A(Base):
    @fal.endpoint("/which")
    def which(self, found: str = Depends(wanted)) -> str:
        return found
"""
    runner = bench.start(HEAD + source, entry="A")
    assert post(runner, "/which?it=me").json() == "me"


@pytest.mark.parametrize("parameter", ["", ", response: Response"])
def test_a_health_check_is_answered_while_all_slots_are_taken(bench: Bench, parameter: str) -> None:
    body = f"""
    @fal.endpoint("/work")
    def work(self) -> str:
        self.asked = threading.Event()
        self.count = 1
        return "asked" if self.asked.wait(20) else "late"
    @fal.endpoint("/well", health_check=fal.HealthCheck())
    def well(self{parameter}) -> None:
        while not self.count:
            time.sleep(0.01)
        self.asked.set()
"""
    runner = start(bench, body)
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(post, runner, "/work")
        assert post(runner, "/well", {}).status_code == 200
        assert working.result().json() == "asked"


def test_a_failed_setup_says_why(bench: Bench) -> None:
    source = HEAD + "class A(Base):\n    def setup(self):\n        raise OSError('no weights')\n"
    runner = bench.start(source, entry="A", ready=False)
    failed = next(line for line in runner.states() if line["state"] == "FAILED")
    assert failed["error"] == "OSError: no weights"


def test_an_error_shows_the_lines_of_its_class(shell: Any) -> None:
    cell = """%%fal_app wait=true
import fal_notebook as fal

class Broken(fal.App):
    @fal.endpoint("/")
    def fail(self, n: int) -> int:
        left = n - 1
        return self.divided(left)
    def divided(self, left):
        return 1 // left  # the culprit
"""
    shell.run(cell)
    with pytest.raises(ZeroDivisionError) as error:
        shell.run("Broken.fail(n=1)")
    shown = error.value.__cause__.remote_traceback  # type: ignore[union-attr]
    assert "return self.divided(left)" in shown
    assert "line 10, in divided\n    return 1 // left  # the culprit" in shown


# --- how it is captured -------------------------------------------------------------------------
def test_a_class_takes_along_what_it_needs() -> None:
    payload = capture(app_in("class A(Base):\n    @fal.endpoint('/')\n    def f(self): shout('')"))
    assert {c.name for c in payload.captured} >= {"A", "Base", "shout"}
    assert payload.manifest["kind"] == "app"


def test_the_digest_follows_options_and_bases() -> None:
    plain = "class A(Base):\n    @fal.endpoint('/')\n    def f(self): pass"
    one, same = capture(app_in(plain)).digest, capture(app_in(plain)).digest
    other = capture(app_in(plain.replace("'/'", "'/f'"))).digest
    assert one == same != other


# --- how it is deployed -------------------------------------------------------------------------
def test_a_class_is_deployed_and_called(gateway: GatewayInfo) -> None:
    source = """
class Deployed(Base):
    @fal.endpoint("/draw")
    def draw(self, input: Prompt) -> Drawn:
        return Drawn(text=shout(input.prompt))
    @fal.endpoint("/parts")
    def parts(self, n: int) -> Iterator[int]:
        yield from range(n)
    @fal.endpoint("/status")
    def status(self) -> str:
        return "mine"
"""
    with notebook():
        with pytest.warns(UserWarning, match="`status` is the handle's own"):
            app = fal.deploy(define(HEAD + source)["Deployed"], wait=True)
        try:
            assert app.name == "deployed"
            assert app.draw(prompt="hi").text == "HI"
            assert list(app.parts(n=2)) == list(app.parts.stream(2)) == [0, 1]
            assert app["/status"]() == "mine"
            assert app.status()["options"]["keep_alive"] == 7
            assert app.status()["options"]["machine_type"] == "S"
            with control(gateway) as client:
                reply = client.post(f"/run/{app.owner}/deployed/draw", json={"prompt": "x"})
            assert reply.json() == {"text": "X"}
        finally:
            app.delete()


def test_a_decorated_function_is_deployed_at_its_first_call(gateway: GatewayInfo) -> None:
    source = """
@fal.function("virtualenv", keep_alive=3)
def lazily(n: int) -> int:
    return n + 1
"""
    with notebook():
        lazily = define(HEAD + source)["lazily"]
        assert lazily.local(1) == 2
        try:
            assert lazily(1) == 2
            assert lazily.status()["options"]["keep_alive"] == 3
        finally:
            lazily.delete()


def test_the_decorator_without_parentheses_says_so() -> None:
    with pytest.raises(
        OptionError, match=r"^@function lacks its parentheses; write @function\(\)$"
    ):

        @fal.function
        def f() -> None: ...


# --- %%fal_app ----------------------------------------------------------------------------------
CELL = """
import fal_notebook as fal
from pydantic import BaseModel
class Asked(BaseModel):
    n: int
class Base(fal.App):
    keep_alive = 5
    def setup(self):
        self.offset = 10
class Counter(Base):
    max_concurrency = 3
    @fal.endpoint("/add")
    def add(self, asked: Asked) -> int:
        return asked.n + self.offset
"""


def test_the_cell_magic_deploys_the_last_app_and_its_line_wins(shell: Any) -> None:
    shell.run(f"%%fal_app max_concurrency=2 wait=true\n{CELL}")
    counter = shell["Counter"]
    assert counter.name == "counter"
    assert shell.run("Counter.add(n=1)") == 11
    assert shell.run("Counter.add(Asked(n=2))") == 12
    assert shell.run("Counter.local.add(Asked(n=3))") == 13
    options = counter.status()["options"]
    assert (options["max_concurrency"], options["keep_alive"]) == (2, 5)
    derived = "class More(Counter):\n    pass"
    shell.run(f"%%fal_app other wait=true\n{derived}")
    assert shell["More"].name == "other"
    assert shell.run("More.add(n=1)") == 11


WRONG_CELLS = {
    "x = 1": "the cell defines no class to deploy",
    "class A: pass": "`A` is no app",
    "import fal\nclass A(fal.App): pass": "import fal_notebook as fal",
    "import fal_notebook as fal\nclass A(fal.App): pass": "class `A` has no endpoint",
}


@pytest.mark.parametrize("cell", WRONG_CELLS)
def test_a_cell_without_an_app_is_refused_in_a_sentence(shell: Any, cell: str) -> None:
    with pytest.raises(UsageError, match="%%fal_app: .*" + WRONG_CELLS[cell]):
        shell.run(f"%%fal_app\n{cell}")
