"""The handle's side of the queue: submit, status, result, cancel, events, map, and restarts."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi import HTTPException
from serving import deployed, interrupted_after, kill_gateway

from fal_notebook import discovery, sync
from fal_notebook.exceptions import (
    FalNotebookError,
    GatewayError,
    GatewayUnavailableError,
    NotFoundError,
    OptionError,
    RemoteError,
    RequestCancelledError,
    StartTimeoutError,
    UnpicklableError,
)
from fal_notebook.handle import Handle, shared_client
from fal_notebook.log_lines import untold
from fal_notebook.patience import again
from fal_notebook.submitting import QueueOptions

SLOW = """
import asyncio
async def slow(seconds, value=None):
    await asyncio.sleep(seconds)
    return value
"""
DOUBLE = "def double(x):\n    return 2 * x"


# --- submit, status, result ------------------------------------------------------------------
def test_a_submitted_call_gives_the_value_that_a_call_gives(gateway) -> None:
    source = "def f(a, /, b, *more, self=0, **named): return a, b, more, self, named"
    with ExitStack() as stack:
        with pytest.warns(UserWarning, match="takes `\\*more`"):
            handle = stack.enter_context(deployed(source))
        submitted = handle.submit(1, 2, 3, self=4, request_id=5)
        assert submitted.result() == (1, 2, (3,), 4, {"request_id": 5})
        status = submitted.status()
        assert (status.state, status.error, status.queue_position) == ("COMPLETED", "", None)
        assert status.metrics["inference_time"] > 0
        assert submitted.result() == submitted.result(timeout=0)
        assert submitted.request_id in repr(submitted)


def test_a_503_that_the_function_raises_is_tried_again_as_over_http(gateway) -> None:
    source = (
        "from fastapi import HTTPException\n"
        "def busy():\n    print('once more')\n    raise HTTPException(503, 'busy')\n"
    )
    with deployed(source, retry_config={"server_error": {"retries": 2}}) as handle:
        submitted = handle.submit()
        with pytest.raises(HTTPException, match="503: busy"):
            submitted.result()
        assert sum(line["message"] == "once more" for line in submitted.logs()) == 3


def test_what_the_function_raised_is_raised_by_result(gateway) -> None:
    with deployed("def f(): return {}['missing']") as handle:
        submitted = handle.submit()
        with pytest.raises(KeyError, match="missing") as caught:
            submitted.result()
        assert isinstance(caught.value.__cause__, RemoteError)
        status = submitted.status()
        assert (status.error, status.error_type) == (
            "the function raised KeyError",
            "runner_server_error",
        )
        with pytest.raises(KeyError, match="missing"):
            asyncio.run(submitted.aio())


@pytest.mark.parametrize("size", [1, 3_000_000])  # in the journal, in a file beside it
def test_a_submitted_generator_gives_its_values_then_its_error(gateway, size: int) -> None:
    source = "def f(size):\n    yield 1\n    yield 'x' * size\n    raise KeyError('lost')"
    with deployed(source) as handle:
        submitted = handle.submit(size)
        values = submitted.result()
        assert (next(values), next(values)) == (1, "x" * size)
        with pytest.raises(KeyError, match="lost"):
            next(values)
        status = submitted.status()
        assert (status.state, status.error, status.error_type) == (
            "COMPLETED",
            "the function raised KeyError",
            "runner_server_error",
        )
        assert list(submitted)[-1].error == status.error


def test_the_request_is_found_again_by_its_id(gateway) -> None:
    with deployed(DOUBLE) as handle:
        request_id = handle.submit(21).request_id
        assert Handle(handle.owner, handle.name).request(request_id).result() == 42
        assert pickle.loads(pickle.dumps(handle.request(request_id))).result() == 42


def test_megabytes_travel_through_the_queue(gateway) -> None:
    with deployed(DOUBLE) as handle:
        assert handle.submit(b"x" * 3_000_000).result() == b"x" * 6_000_000


def test_an_unknown_request_is_one_sentence_naming_it(gateway) -> None:
    with deployed(DOUBLE) as handle:
        nobody = handle.request("0" * 30 + "ff")
        asked = (nobody.status, nobody.result, nobody.cancel, nobody.logs, lambda: list(nobody))
        for ask in asked:
            with pytest.raises(
                NotFoundError, match=rf"{nobody.request_id} of tester/double is not there any more$"
            ):
                ask()


@pytest.mark.parametrize("wrong", [5, "", "00ff", "..", "a/b", "\udc80", "0" * 100_000])
def test_what_is_no_id_is_refused_in_one_sentence(wrong: Any) -> None:
    with pytest.raises(FalNotebookError, match=r"^.{1,40} is no id of a request: that is 32 hex"):
        Handle("tester", "double").request(wrong)


def test_an_argument_that_cannot_travel_is_refused_at_submit(gateway) -> None:
    with deployed(DOUBLE) as handle:
        with pytest.raises(UnpicklableError, match="an argument of double cannot be pickled"):
            handle.submit(threading.Lock())
        with pytest.raises(NotFoundError, match="no such app"):
            Handle("tester", "nobody").submit(1)


def test_a_timeout_leaves_the_request_running(gateway) -> None:
    with deployed(SLOW) as handle:
        submitted = handle.submit(0.8, "done")
        with pytest.raises(TimeoutError, match=rf"{submitted.request_id} of slow goes on, it is I"):
            submitted.result(timeout=0.2)
        assert submitted.result(timeout=20) == "done"


def test_an_interrupted_result_leaves_the_request_running_and_says_so(gateway) -> None:
    with deployed(SLOW) as handle:
        submitted = handle.submit(1, "done")
        with interrupted_after(0.3), pytest.raises(KeyboardInterrupt, match=r"goes on; its \.canc"):
            submitted.result()
        assert submitted.result() == "done"


def test_a_submit_waits_for_the_deploy_of_its_cell(shell) -> None:
    shell.run("import time\ndef load(): time.sleep(0.5)")
    shell.run("%%fal_function setup_function=load\ndef f(): return 5")
    assert shell["f"].submit().result() == 5


def submit_json(handle: Handle, body: bytes) -> Any:
    """Submit as another program does."""
    json = {"content-type": "application/json"}
    found = sync.wait(shared_client().submit(handle.owner, handle.name, body, json, {}))
    return handle.request(found["request_id"])


def test_a_json_answer_is_given_as_data_and_a_refusal_as_its_status(gateway) -> None:
    source = (
        "from fastapi import HTTPException\n"
        "def f(x: int) -> dict:\n"
        "    if x == 0: raise HTTPException(404, 'no zero')\n"
        "    return {'x': x}"
    )
    with deployed(source, serve=True) as handle:
        assert submit_json(handle, b'{"x": 3}').result() == {"x": 3}
        with pytest.raises(GatewayError, match=r"^404: no zero$"):
            submit_json(handle, b'{"x": 0}').result()


def test_a_generator_that_refuses_before_its_first_item_is_answered_with_its_status(
    gateway,
) -> None:
    source = (
        "from fastapi import HTTPException\n"
        "def f(x: int):\n"
        "    if x == 0: raise HTTPException(404, 'no zero')\n"
        "    yield x"
    )
    with deployed(source, serve=True) as handle:
        assert "data: 3" in submit_json(handle, b'{"x": 3}').result()
        with pytest.raises(GatewayError, match=r"^404: no zero$"):
            submit_json(handle, b'{"x": 0}').result()


def test_a_runner_submits_to_another_app_and_returns_the_request(gateway) -> None:
    with deployed(DOUBLE) as handle:
        source = "def outer(handle, x): return handle.submit(x), list(handle.map([x, x]))"
        with deployed(source, max_concurrency=1) as outer:
            submitted, values = outer(handle, 4)
            assert (submitted.result(), values) == (8, [8, 8])


# --- cancel ----------------------------------------------------------------------------------
def test_a_request_that_waits_is_cancelled_at_once(gateway) -> None:
    with deployed(SLOW, max_concurrency=1) as handle:
        first, second = handle.submit(1.5, "first"), handle.submit(60)
        assert second.cancel()
        with pytest.raises(RequestCancelledError, match=second.request_id):
            second.result(timeout=5)
        assert second.status().error_type == "client_cancelled"
        assert first.result() == "first"
        assert not first.cancel()


def test_what_is_at_work_finishes_after_its_cancel(gateway, eventually) -> None:
    with deployed(SLOW) as handle:
        submitted = handle.submit(1, "done")
        assert eventually(lambda: submitted.status().state == "IN_PROGRESS")
        assert submitted.cancel()
        assert submitted.result(timeout=10) == "done"


def test_a_wait_ends_when_the_app_is_deleted(gateway) -> None:
    with deployed(SLOW, max_concurrency=1, termination_grace_period_seconds=0) as handle:
        handle.submit(60)
        waiting = handle.submit(60)
        future = sync.submit(waiting.outcome())
        handle.delete()
        with pytest.raises(GatewayError, match="the app was deleted"):
            future.result(20)
        assert waiting.status().error == "the app was deleted"
        assert not waiting.cancel()


# --- events and logs -------------------------------------------------------------------------
def test_iteration_tells_states_and_each_log_line_once(gateway) -> None:
    source = (
        "import time\ndef f():\n    for i in range(3):\n"
        "        print('line', i)\n        time.sleep(0.4)"
    )
    with deployed(source) as handle:
        submitted = handle.submit()
        events = list(submitted)
        assert events[-1].state == "COMPLETED"
        assert len({event.state for event in events}) >= 2
        told = [line["message"] for event in events for line in event.logs]
        assert told == ["line 0", "line 1", "line 2"]
        lines = submitted.logs()
        assert [line["message"] for line in lines] == told
        events_lines = [line for event in events for line in event.logs]
        for line, same in zip(events_lines, lines, strict=True):
            assert line == {**same, "at": pytest.approx(same["at"], abs=1e-5), "runner": None}


def test_logs_of_a_request_are_all_that_it_wrote(gateway) -> None:
    source = "def f():\n    for i in range(1234): print('line', i)"
    with deployed(source) as handle:
        submitted = handle.submit()
        submitted.result()
        assert [line["message"] for line in submitted.logs()] == [f"line {i}" for i in range(1234)]
        assert [line["message"] for line in submitted.logs(tail=1)] == ["line 1233"]
        with pytest.raises(OptionError, match="tail=-1 is not allowed; it is a number of lines"):
            submitted.logs(tail=-1)
        for wrong in (submitted, handle):
            with pytest.raises(OptionError, match=r"^tail='x' is not allowed: Input should be a"):
                wrong.logs(tail="x")


def test_async_iteration_and_aio_do_not_block(gateway) -> None:
    async def follow() -> tuple[list[str], Any]:
        submitted = await handle.asubmit(0.2, 7)
        states = [event.state async for event in submitted]
        return states, await submitted.aio()

    with deployed(SLOW) as handle:
        states, value = asyncio.run(follow())
        assert (states[-1], value) == ("COMPLETED", 7)


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ([], [1, 2], [1, 2]),
        ([1, 2], [1, 2], []),
        ([1, 2], [1, 2, 3], [3]),
        ([1, 2, 3], [2, 3, 4], [4]),
        ([1, 1], [1, 1, 1], [1]),
        ([1, 2], [7], [7]),
        ([1, 2, 3], [1, 3, 2, 4], [4]),
        ([1, 3, 4], [1, 2, 3, 4, 5], [2, 5]),
    ],
)
def test_new_lines_are_those_that_were_not_told(before, now, new) -> None:
    assert untold(before, now) == new


# --- options ---------------------------------------------------------------------------------
def test_options_of_the_queue_are_obeyed(gateway) -> None:
    with deployed(SLOW, max_concurrency=1) as handle:
        busy = handle.submit(2.0)
        low = handle.with_options(priority="low").submit(0, "low")
        normal = handle.submit(0, "normal")
        assert low.status().queue_position == 1
        late = handle.with_options(start_timeout=1.1, no_retry=True).submit(0)
        with pytest.raises(GatewayError, match=r"429.* requests? wait, and fal_max"):
            handle.with_options(max_queue_length=1).submit(0)
        with pytest.raises(StartTimeoutError, match=f"{late.request_id} did not begin in time"):
            late.result()
        assert late.status().error_type == "request_timeout"
        assert (normal.result(), low.result(), busy.result()) == ("normal", "low", None)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("priority", "high", "normal or low"),
        ("priority", None, "normal or low"),
        ("start_timeout", 1, "seconds above 1, at most a year"),
        ("start_timeout", "x", "seconds above 1, at most a year"),
        ("start_timeout", float("nan"), "seconds above 1, at most a year"),
        ("start_timeout", float("inf"), "seconds above 1, at most a year"),
        ("max_queue_length", -1, "a whole number, 0 or more"),
        ("max_queue_length", 2.5, "a whole number, 0 or more"),
        ("webhook_url", 5, "a URL, as text"),
        ("no_retry", "maybe", "True or False"),
    ],
)
def test_a_wrong_option_of_the_queue_is_one_sentence(name, value, allowed) -> None:
    with pytest.raises(OptionError) as refused:
        Handle("tester", "f").with_options(**{name: value})
    assert str(refused.value) == f"{name}={value!r} is not allowed: {allowed}"


def test_an_unknown_option_of_the_queue_is_refused_with_the_nearest() -> None:
    with pytest.raises(OptionError, match="did you mean 'priority'"):
        Handle("tester", "f").with_options(prioriti="low")


def test_options_of_the_queue_may_be_left_open() -> None:
    options = QueueOptions(start_timeout=None, webhook_url=None, max_queue_length=None)
    assert options == QueueOptions()
    assert QueueOptions(start_timeout=2).headers()["x-fal-request-timeout"] == "2.0"


@pytest.mark.parametrize("most", [0, "x", None, 2.5])
def test_a_wrong_number_in_flight_is_one_sentence(most) -> None:
    with pytest.raises(OptionError) as refused:
        Handle("tester", "f").map([1], max_in_flight=most)
    allowed = "a whole number, 1 or more"
    assert str(refused.value) == f"max_in_flight={most!r} is not allowed: {allowed}"


@pytest.mark.parametrize("timeout", ["x", float("nan"), -1])
def test_a_wrong_timeout_is_one_sentence(timeout) -> None:
    with pytest.raises(OptionError) as refused:
        Handle("tester", "f").request("0" * 32).result(timeout=timeout)
    allowed = "seconds from 0, or None"
    assert str(refused.value) == f"timeout={timeout!r} is not allowed: {allowed}"


# --- map -------------------------------------------------------------------------------------
def test_map_keeps_the_order_and_takes_several_iterables(gateway) -> None:
    source = "import time\ndef f(x, y=0):\n    time.sleep(0.05 * (x % 3))\n    return x, y"
    with deployed(source, max_multiplexing=8) as handle:
        assert list(handle.map(range(20))) == [(x, 0) for x in range(20)]
        assert list(handle.map([1, 2, 3], "ab")) == [(1, "a"), (2, "b")]
        assert list(handle.map([])) == []
        with pytest.raises(TypeError, match="at least one iterable"):
            handle.map()


def test_map_reads_an_endless_iterable_as_results_are_taken(gateway) -> None:
    read = []

    def numbers() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    with deployed(DOUBLE, max_multiplexing=8) as handle:
        values = handle.map(numbers(), max_in_flight=4)
        assert read == []
        assert [next(values) for _ in range(10)] == list(range(0, 20, 2))
        assert len(read) <= 14
        values.close()


def test_map_raises_at_its_place_and_cancels_the_rest(gateway, eventually) -> None:
    source = (
        "import time\ndef f(x):\n    if x == 1: raise KeyError(x)\n    time.sleep(x)\n    return x"
    )
    with deployed(source, max_concurrency=1, termination_grace_period_seconds=0) as handle:
        values = handle.map([0, 1, 2, 60, 60, 60])
        assert next(values) == 0
        with pytest.raises(KeyError, match="1"):
            next(values)
        assert list(values) == []
        assert eventually(lambda: handle.status()["queued"] == 0)


def test_what_an_iterable_raises_comes_behind_the_results_before_it(gateway) -> None:
    def numbers() -> Iterator[int]:
        yield from (1, 2)
        raise LookupError("no third")

    async def mapped() -> list[Any]:
        values = handle.amap(numbers())
        found = [await anext(values), await anext(values)]
        with pytest.raises(LookupError, match="no third"):
            await anext(values)
        return found

    with deployed(DOUBLE, max_multiplexing=4) as handle:
        for given in (numbers(), [1, 2, threading.Lock()]):
            values = handle.map(given)
            assert [next(values), next(values)] == [2, 4]
            with pytest.raises((LookupError, UnpicklableError)):
                next(values)
        assert asyncio.run(mapped()) == [2, 4]


def test_map_returns_exceptions_in_place_if_asked(gateway) -> None:
    with deployed("def f(x): return 1 / x", max_multiplexing=8) as handle:
        first, second, third = handle.map([1, 0, 2], return_exceptions=True)
        assert (first, third) == (1, 0.5)
        assert isinstance(second, ZeroDivisionError)


def test_an_interrupted_map_cancels_what_is_under_way(gateway, eventually) -> None:
    with deployed(SLOW, max_concurrency=1, termination_grace_period_seconds=0) as handle:
        with interrupted_after(0.5), pytest.raises(KeyboardInterrupt):
            list(handle.map([60, 60, 60]))
        assert eventually(lambda: handle.status()["queued"] == 0)


def test_a_wait_keeps_its_connection(gateway) -> None:
    async def connections() -> int:
        http = shared_client()._http
        assert http is not None
        return len(http._transport._pool.connections)  # type: ignore[attr-defined]

    with deployed(DOUBLE, max_multiplexing=4) as handle:
        before = sync.wait(connections())
        for number in range(5):
            assert handle.submit(number).result() == 2 * number
        assert sync.wait(connections()) <= before + 1


def test_amap_takes_async_iterables(gateway) -> None:
    async def numbers() -> Any:
        for number in range(5):
            yield number

    async def collect() -> list[Any]:
        return [value async for value in handle.amap(numbers(), max_in_flight=2)]

    with deployed(DOUBLE) as handle:
        assert asyncio.run(collect()) == [0, 2, 4, 6, 8]


# --- restarts --------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"auth": "public", "serve": True}])
def test_a_wait_outlasts_a_killed_gateway(own_gateway, options) -> None:
    with deployed(SLOW, **options) as handle:
        submitted = handle.submit(1.5, "done")
        threading.Timer(0.5, kill_gateway, (own_gateway,)).start()
        assert submitted.result() == "done"
        kill_gateway(own_gateway)
        assert submitted.status().state == "COMPLETED"
        kill_gateway(own_gateway)
        assert submitted.result() == "done"
        kill_gateway(own_gateway)
        assert not submitted.cancel()


def test_iteration_goes_on_after_a_killed_gateway(own_gateway) -> None:
    with deployed(SLOW) as handle:
        submitted = handle.submit(1.5)
        states = []
        for event in submitted:
            if event.state == "IN_PROGRESS" and "IN_PROGRESS" not in states:
                kill_gateway(own_gateway)
            states.append(event.state)
        assert states[-1] == "COMPLETED"


def test_a_wait_outlasts_a_gateway_that_is_replaced(own_gateway, eventually) -> None:
    with deployed(SLOW) as handle:
        submitted = handle.submit(1.5, "done")
        future = sync.submit(submitted.outcome())
        eventually(lambda: submitted.status().state == "IN_PROGRESS")
        began = time.monotonic()
        sync.wait(shared_client().stop_gateway(keep_runners=True))
        assert future.result(30) == "done"
        assert time.monotonic() - began < 25


def test_map_outlasts_a_killed_gateway(own_gateway) -> None:
    with deployed(SLOW, max_multiplexing=4) as handle:
        values = handle.map([0.3] * 12, range(12), max_in_flight=12)
        found = [next(values)]
        kill_gateway(own_gateway)  # every call has been accepted: the window holds all of them
        assert found + list(values) == list(range(12))


@pytest.mark.parametrize("auth", ["private", "public"])
def test_calls_find_a_gateway_that_somebody_else_started(own_gateway, auth) -> None:
    """It has another token, at the same URL."""
    with deployed(DOUBLE, serve=True, auth=auth) as handle:
        for call in (handle, lambda x: handle.submit(x).result()):
            kill_gateway(own_gateway)
            discovery.wait_until_gone(own_gateway)
            discovery.ensure(own_gateway)
            assert call(21) == 42


def test_a_submit_whose_answer_is_lost_is_accepted_once(own_gateway, tmp_path) -> None:
    """Stopped, the gateway takes the connection and no more: the answer never comes."""
    with deployed(f"def note(x):\n    print(x, file=open({str(tmp_path / 'seen')!r}, 'a'))") as f:
        info = discovery.published(own_gateway)
        assert info is not None
        f.submit(1).result()
        os.kill(info.pid, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (info.pid, signal.SIGKILL)).start()
        f.submit(2).result()
        assert (tmp_path / "seen").read_text() == "1\n2\n"


def test_a_submit_id_names_one_request(gateway) -> None:
    async def submit(handle: Handle, **more: str) -> str:
        body, headers = b'{"x": 1}', {"content-type": "application/json", **more}
        answer = await shared_client().submit(handle.owner, handle.name, body, headers, {})
        return str(answer["request_id"])

    async def many(handle: Handle) -> set[str]:
        given = {"x-fal-submit-id": "0" * 31 + "1"}
        asked = (again(lambda: submit(handle, **given)) for _ in range(20))
        return set(await asyncio.gather(*asked))

    with deployed(DOUBLE) as handle, deployed("def other(x): return x") as other:
        assert sync.wait(many(handle)) == {"0" * 31 + "1"}
        assert handle.request("0" * 31 + "1").result() == 2
        with pytest.raises(GatewayUnavailableError, match="is there or comes"):
            sync.wait(submit(other, **{"x-fal-submit-id": "0" * 31 + "1"}))
        with pytest.raises(GatewayError, match="422: x-fal-submit-id is 32 hexadecimal digits"):
            sync.wait(submit(handle, **{"x-fal-submit-id": "../x"}))
