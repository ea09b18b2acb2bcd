"""What the user's code writes lands in the log as lines, each with its request."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from runner_bench import Bench, LiveRunner
from serving import eventually

from fal_notebook.runner import log_context, log_file
from fal_notebook.runner.log_file import record_mark
from fal_notebook.runner.logs import LONGEST, LineWriter
from fal_notebook.runner.secret_forms import hiding

MARK = record_mark("secret")


def run(bench: Bench, body: str, head: str = "") -> LiveRunner:
    """Start a runner whose function has this body, and call it once as request r1."""
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    runner = bench.start(
        f"import os, sys, subprocess, logging, warnings\n{head}\ndef f():\n{lines}"
    )
    runner.value()
    return runner


OLD = "f.py:1: UserWarning: old"


@pytest.mark.parametrize(
    ("body", "level", "expected"),
    [
        ("print('one')\nprint('two')", "INFO", ["one", "two"]),
        ("print('a', end='')\nprint('b')", "INFO", ["ab"]),
        ("print('unfinished', end='')", "INFO", ["unfinished"]),
        ("print('x\\ny')", "INFO", ["x", "y"]),
        ("print()", "INFO", [""]),
        ("print('ü \\ud800')", "INFO", ["ü \\ud800"]),
        ("print('10%', end='\\r'); print('20%', end='\\r')", "INFO", ["20%"]),
        ("print('to stderr', file=sys.stderr)", "ERROR", ["to stderr"]),
        ("sys.__stdout__.write('past\\n')", "INFO", ["past"]),
        ("sys.stdout.writelines(['a\\n', 'b\\n'])", "INFO", ["a", "b"]),
        ("print(sys.stdout.encoding, sys.stdout.isatty())", "INFO", ["utf-8 False"]),
        ("sys.stdout.close(); print('still here')", "INFO", ["still here"]),
        ("logging.warning('careful')", "WARNING", ["WARNING:root:careful"]),
        ("logging.getLogger('x').warning('careful')", "WARNING", ["careful"]),
        ("logging.getLogger('x').error('bad')", "ERROR", ["bad"]),
        ("logging.critical('end')", "CRITICAL", ["CRITICAL:root:end"]),
        ("logging.getLogger('x').info('unheard'); print('heard')", "INFO", ["heard"]),
        (
            "logging.basicConfig(level=1, format='%(message)s')\nlogging.debug('detail')",
            "DEBUG",
            ["detail"],
        ),
        (
            "logging.basicConfig(level=1, format='%(message)s', stream=sys.stdout)\n"
            "logging.log(35, 'between')",
            "WARNING",
            ["between"],
        ),
        ("warnings.showwarning('old', UserWarning, 'f.py', 1, line='x')", "WARNING", [OLD, "  x"]),
    ],
)
def test_lines_of_a_request_bear_its_id(
    bench: Bench, body: str, level: str, expected: list[str]
) -> None:
    lines = run(bench, body).lines()
    assert [line["message"] for line in lines] == expected
    assert {(line["level"], line["request"]) for line in lines} == {(level, "r1")}


@pytest.mark.parametrize(
    "body",
    [
        "os.write(1, b'raw\\n')",
        "subprocess.run(['echo', 'raw'])",
        "subprocess.run('echo raw >&2', shell=True)",
        "sys.stdout.buffer.write(b'raw\\n')",
    ],
)
def test_output_past_sys_stdout_lands_in_the_log_without_a_request(bench: Bench, body: str) -> None:
    lines = run(bench, body).lines()
    assert [(line["message"], line["request"]) for line in lines] == [("raw", None)]


def test_warnings_land_in_the_log(bench: Bench) -> None:
    lines = run(bench, "warnings.warn('old')\nprint('next', file=sys.stderr)").lines()
    assert "UserWarning: old" in lines[0]["message"]
    assert [lines[0]["level"], lines[-1]["level"]] == ["WARNING", "ERROR"]


def test_recorded_warnings_and_captured_ones_go_where_the_user_wants_them(bench: Bench) -> None:
    body = """with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    warnings.warn("recorded")
print(len(found))
logging.basicConfig(); logging.captureWarnings(True)
warnings.warn("captured")"""
    lines = run(bench, body).lines()
    assert lines[0]["message"] == "1"
    assert "captured" in lines[1]["message"]
    assert lines[1]["level"] == "WARNING"


def test_output_of_setup_and_import_is_there_without_a_request(bench: Bench) -> None:
    runner = bench.start("def setup():\n    print('up', end='')\ndef f(): pass")
    assert [(line["message"], line["request"]) for line in runner.lines()] == [("up", None)]


def test_a_threads_and_a_tasks_lines_keep_the_request(bench: Bench) -> None:
    source = """
import asyncio, contextvars, threading
async def part(): print("task")
async def f():
    await asyncio.gather(part(), asyncio.to_thread(print, "thread"))
"""
    runner = bench.start(source)
    runner.value()
    assert {(line["message"], line["request"]) for line in runner.lines()} == {
        ("task", "r1"),
        ("thread", "r1"),
    }


THREADS = """
import asyncio, concurrent.futures, threading, time
from multiprocessing.pool import ThreadPool
def setup():
    return concurrent.futures.ThreadPoolExecutor(3)
class Sub(threading.Thread):
    def run(self):
        print("sub")
async def f(shared, name: str):
    loop = asyncio.get_running_loop()
    started = [threading.Thread(target=print, args=("thread",)), Sub()]
    timer = threading.Timer(0.01, print, args=("timer",))
    for thread in [*started, timer]:
        thread.start()
    for thread in [*started, timer]:
        await asyncio.to_thread(thread.join)
    shared.submit(print, "shared").result()
    await loop.run_in_executor(None, print, "default")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(print, ["mapped"] * 4))
    with ThreadPool(2) as pool:
        pool.map(print, ["pooled"])
    def nested():
        inner = threading.Thread(target=print, args=("nested",))
        inner.start(); inner.join()
    shared.submit(nested).result()
"""


def test_threads_carry_the_request_that_started_them(bench: Bench) -> None:
    runner = bench.start(THREADS, max_multiplexing=8)
    names = [f"r{n}" for n in range(8)]

    def call(name: str) -> int:
        return runner.post({"name": name}, headers={"x-fal-request-id": name}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, names)) == [200] * 8
    expected = ["thread", "sub", "timer", "shared", "default", *["mapped"] * 4, "pooled", "nested"]
    for name in names:
        lines = [line["message"] for line in runner.lines() if line["request"] == name]
        assert sorted(lines) == sorted(expected)


def test_a_thread_that_outlives_its_request_names_none_and_not_another(bench: Bench) -> None:
    source = """
import queue, threading
def setup():
    return queue.Queue(), []
def serve(work):
    while True:
        message, done = work.get()
        print(message)
        done.set()
def f(first, name: str):
    work, worker = first
    if not worker:
        worker.append(threading.Thread(target=serve, args=(work,), daemon=True))
        worker[0].start()
    done = threading.Event()
    work.put((name, done))
    done.wait()
"""
    runner = bench.start(source)
    for name in ("first", "second"):
        runner.post({"name": name}, headers={"x-fal-request-id": name})
    found = [(line["message"], line["request"]) for line in runner.lines()]
    assert found == [("first", "first"), ("second", None)]


LIVES_ON = {
    "a task": """
import asyncio
WORK = []
async def work():
    while True:
        name, done = await WORK[0].get()
        print(name)
        done.set_result(None)
async def f(name: str):
    if not WORK:
        WORK.extend([asyncio.Queue(), asyncio.create_task(work())])
    done = asyncio.get_running_loop().create_future()
    WORK[0].put_nowait((name, done))
    await done
""",
    "a process": """
import concurrent.futures, multiprocessing
POOL = []
def f(name: str):
    if not POOL:
        kind = multiprocessing.get_context("fork")
        POOL.append(concurrent.futures.ProcessPoolExecutor(1, kind))
    POOL[0].submit(print, name, flush=True).result()
""",
}


@pytest.mark.parametrize("what", LIVES_ON)
def test_what_lives_on_names_no_request_that_has_ended(bench: Bench, what: str) -> None:
    runner = bench.start(LIVES_ON[what])
    for name in ("first", "second"):
        runner.post({"name": name}, headers={"x-fal-request-id": name})
    first, second = [line for line in runner.lines() if line["message"] in ("first", "second")]
    assert first["request"] in ("first", None)
    assert second["request"] is None


POOLS = """
import asyncio, concurrent.futures
from multiprocessing.pool import ThreadPool
def setup():
    return ThreadPool(2), concurrent.futures.ThreadPoolExecutor(2), asyncio.Event(), []
async def f(shared, name: str):
    pool, executor, go, begun = shared
    if name == "held":
        begun += [ThreadPool(2), concurrent.futures.ThreadPoolExecutor(2)]
        begun[0].map(print, ["held"])
        begun[1].submit(print, "held").result()
        await go.wait()
        return
    while not begun:
        await asyncio.sleep(0.01)
    for threads, futures in ((pool, executor), begun):
        threads.map(print, ["map"])
        threads.apply_async(str, callback=lambda _: print("callback")).wait()
        list(threads.imap(print, ["imap"]))
        list(threads.imap_unordered(print, ["unordered"]))
        threads.starmap(print, [("starmap",)])
        threads.apply(print, ["apply"])
        done = futures.submit(asyncio.run, asyncio.sleep(0.01))
        done.add_done_callback(lambda _: print("done"))
        await asyncio.wrap_future(done)
        list(futures.map(print, ["mapped"]))
    go.set()
"""


def test_pools_that_others_have_made_name_the_request_that_uses_them(bench: Bench) -> None:
    runner = bench.start(POOLS, max_multiplexing=2)
    with ThreadPoolExecutor(2) as pool:
        for name in ("held", "user"):
            headers = {"x-fal-request-id": name}
            pool.submit(runner.post, {"name": name}, headers=headers)
    found = Counter((line["message"], line["request"]) for line in runner.lines())
    used = ("map", "callback", "imap", "unordered", "starmap", "apply", "done", "mapped")
    assert found == {("held", "held"): 2, **{(what, "user"): 2 for what in used}}


def test_a_function_whose_caller_has_gone_still_names_its_request(
    bench: Bench, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    runner = bench.start(
        "import os, time\ndef f():\n    print('began')\n"
        f"    while not os.path.exists({str(go)!r}): time.sleep(0.01)\n    print('still there')"
    )
    call = {"content": b"{}", "headers": {"x-fal-request-id": "r7"}}
    with runner.client() as client, ThreadPoolExecutor(1) as pool:
        gone = pool.submit(client.post, "/", **call)  # type: ignore[arg-type]
        eventually(lambda: "began" in runner.log())
        client.close()
        assert gone.exception() is not None
    go.touch()
    eventually(lambda: "still there" in runner.log())
    assert {line["request"] for line in runner.lines()} == {"r7"}


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_interleaved_parts_of_lines_stay_with_their_request(bench: Bench, kind: str) -> None:
    pause = "await asyncio.sleep(0.001)" if kind == "async def" else "time.sleep(0.001)"
    source = f"""
import asyncio, sys, time
{kind} f(name: str):
    for n in range(30):
        for part in (name, "-", str(n)):
            sys.stdout.write(part)
            {pause}
        print()
"""
    runner = bench.start(source, max_multiplexing=8)
    names = list("abcdefgh")

    def call(name: str) -> None:
        runner.post({"name": name}, headers={"x-fal-request-id": name})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, names))
    for name in names:
        lines = [line["message"] for line in runner.lines() if line["request"] == name]
        assert lines == [f"{name}-{n}" for n in range(30)]


def test_a_runner_that_prints_without_end_fills_no_disk(bench: Bench) -> None:
    body = "for n in range(2000):\n    print(f'{n:06}' + 'x' * 30_000)"
    runner = run(bench, body)
    found = os.stat(runner.spec.log)
    assert found.st_size > 55_000_000
    assert log_file.disk_space(found) <= log_file.MOST + 4_000_000
    with open(runner.spec.log, "rb") as file:
        begin = log_file.kept_from(file.fileno(), 0)
        assert 0 < begin <= found.st_size - log_file.KEPT
        assert log_file.kept_from(file.fileno(), found.st_size) == found.st_size
        assert log_file.kept_from(file.fileno(), found.st_size + 1) == begin
        file.seek(begin)
        kept = [line.partition(b'"message": "')[2][:6] for line in file.read().split(b"\n")[1:-1]]
    assert kept == [b"%06d" % n for n in range(2000 - len(kept), 2000)]


def test_requests_that_print_at_once_do_not_mix(bench: Bench) -> None:
    source = """
import time
def f(name: str):
    for _ in range(20):
        print(name, end="-"); time.sleep(0.002); print(name)
"""
    runner = bench.start(source, max_multiplexing=4)

    def call(name: str) -> None:
        runner.post({"name": name}, headers={"x-fal-request-id": name})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, "abcd"))
    for line in runner.lines():
        assert line["message"] == f"{line['request']}-{line['request']}"
    assert len(runner.lines()) == 80


def test_the_log_is_readable_by_its_user_only(bench: Bench) -> None:
    runner = run(bench, "pass")
    assert stat.S_IMODE(os.stat(runner.spec.log).st_mode) == 0o600


# --- the writer by itself ------------------------------------------------------------------------
@pytest.fixture
def written(tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    writer = LineWriter(descriptor, "INFO", MARK)

    def messages() -> list[str]:
        lines = path.read_bytes().rstrip(b"\n").split(b"\n")
        assert all(line.startswith(MARK) for line in lines)
        return [json.loads(line.removeprefix(MARK))["message"] for line in lines]

    yield writer, messages
    os.close(descriptor)


def test_a_line_that_cannot_be_written_is_lost_and_nothing_else() -> None:
    reader, descriptor = os.pipe()
    os.close(reader)
    writer = LineWriter(descriptor, "INFO", MARK)
    assert writer.write("one\ntwo") == 7
    writer.finish(None)
    os.close(descriptor)


def test_a_line_without_an_end_is_written_in_pieces(written: Any) -> None:
    writer, messages = written
    for _ in range(40):
        writer.write("x" * 1000)
    assert len(messages()) == 1
    writer.write("y" * (3 * LONGEST) + "\n")
    assert all(len(message) <= LONGEST for message in messages())
    assert len("".join(messages())) == 40_000 + 3 * LONGEST


def test_a_huge_line_costs_no_more_than_the_same_text_in_lines(tmp_path: Path) -> None:
    def cost(text: str) -> float:
        with (tmp_path / "log").open("wb") as file:
            begun = time.process_time()
            LineWriter(file.fileno(), "INFO", MARK).write(text)
            return time.process_time() - begun

    size = 32_000_000
    in_lines = cost(("x" * (LONGEST - 1) + "\n") * (size // LONGEST))
    assert cost("x" * size) < 4 * in_lines


def test_threads_of_one_request_do_not_lose_each_others_text(written: Any) -> None:
    writer, messages = written

    def chatter(letter: str) -> None:
        for _ in range(200):
            writer.write(letter)
            writer.write(letter + "\n")

    threads = [threading.Thread(target=chatter, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(messages())) == ["aa", "bb", "cc", "dd"]
    assert len(messages()) == 800


def test_finish_writes_what_one_request_left_and_no_others(written: Any) -> None:
    writer, messages = written
    context = contextvars.copy_context()
    context.run(log_context.request_id.set, "r9")
    context.run(writer.write, "of nine")
    writer.write("of none")
    writer.finish("r9")
    assert messages() == ["of nine"]
    writer.finish(None)
    assert messages() == ["of nine", "of none"]


def test_text_that_is_no_text_is_refused_as_by_any_stream(written: Any) -> None:
    with pytest.raises(TypeError):
        written[0].write(b"bytes")


async def test_a_record_is_one_append(written: Any) -> None:
    writer, messages = written
    await asyncio.gather(*(asyncio.to_thread(writer.write, "z" * 500 + "\n") for _ in range(50)))
    assert messages() == ["z" * 500] * 50


def test_a_secret_is_written_to_no_log_also_where_a_long_line_is_cut(tmp_path: Path) -> None:
    value = "correct horse battery staple"
    path = tmp_path / "log"
    with path.open("wb") as file:
        writer = LineWriter(file.fileno(), "INFO", MARK, hiding({"WORDS": value}))
        for start in (LONGEST - 10, LONGEST - len(value) + 1):
            writer.write("x" * start + value + "\n")
            writer.write("x" * start + value + "y" * LONGEST)  # without an end
            writer.finish(None)
        writer.write(value[:9])
        writer.write(value[9:] + "\n")
    lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    text = "".join(json.loads(line.removeprefix(MARK))["message"] for line in lines)
    assert text.count("[secret WORDS]") == 5
    for part in value.split():
        assert part not in text
