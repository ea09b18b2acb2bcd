"""The main job: a cell becomes an app that answers over HTTP, scales out and back to zero."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx


def test_a_cell_answers_over_http_and_as_a_python_value(shell) -> None:
    shell.run("factor = 3\ndef helper(x): return x * factor")
    shell.run(
        "%%fal_function serve=true auth=public wait=true\n"
        "def triple(x: int) -> int:\n    return helper(x)\n"
    )
    assert shell["triple"](5) == 15
    assert shell["triple"].local(5) == 15
    reply = httpx.post(shell["triple"].url, json={"x": 4})
    assert (reply.status_code, reply.json()) == (200, 12)


def test_load_starts_runners_and_silence_ends_them(shell, eventually) -> None:
    shell.run(
        "%%fal_function max_concurrency=3 keep_alive=0 wait=true\n"
        "def slow(x: int) -> int:\n    import time; time.sleep(0.3); return x\n"
    )
    slow = shell["slow"]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(slow, range(6))) == list(range(6))
    assert max(sample["runners"] for sample in slow.timeline()) == 3
    assert eventually(lambda: slow.runners() == [])


def test_the_same_cell_is_up_to_date_and_a_changed_value_makes_a_revision(shell) -> None:
    cell = "%%fal_function wait=true\ndef scaled(x: int) -> int:\n    return x * factor\n"
    shell.run("factor = 2")
    shell.run(cell)
    first = shell["scaled"].status()
    shell.run(cell)
    assert shell["scaled"].status()["revision"] == first["revision"]
    shell.run("factor = 5")
    shell.run(cell)
    second = shell["scaled"].status()
    assert (second["number"], second["url"]) == (2, first["url"])
    assert shell["scaled"](10) == 50
