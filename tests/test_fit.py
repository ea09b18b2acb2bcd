"""The runner's libraries go with the versions that an environment has, or it is said why not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from cells import OLD, OLD_PINS
from IPython.core.error import UsageError
from packaging.requirements import Requirement

from fal_notebook.backends import uv_process
from fal_notebook.backends.environments import installed
from fal_notebook.backends.fit import applying, misfits, name_of, needs_of, pinned, refusal, unmet
from fal_notebook.backends.runner_libraries import ensure_runner_libraries
from fal_notebook.exceptions import BuildError

MINOR = "{}.{}".format(*sys.version_info)
NEEDS = {
    "starlette": applying(
        ["anyio<5,>=4", "Typing_Extensions>=4.10; python_version<'3.13'"], "3.11"
    ),
    "pydantic": [Requirement("typing-extensions>=4.14")],
    "anyio": [Requirement("idna>=2.8")],
    "idna": [],
}


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ({}, []),
        ({"numpy": "1.0", "anyio": "4.1", "typing-extensions": "4.14"}, []),
        ({"typing-extensions": "4.12.2"}, ["typing-extensions"]),
        ({"typing-extensions": "4.12.2", "pydantic": "2.8"}, []),
        ({"typing-extensions": "4.9.0", "pydantic": "2.8"}, ["typing-extensions"]),
        ({"anyio": "3.7", "idna": "2.7"}, ["anyio"]),
        ({"idna": "2.7"}, ["idna"]),
        ({"typing-extensions": "4.15.0rc1"}, []),
        ({"typing-extensions": "of the system"}, []),
    ],
)
def test_what_does_not_fit_is_what_a_library_that_is_used_cannot_use(
    found: dict[str, str], wrong: list[str]
) -> None:
    assert sorted({name_of(r) for r in misfits(NEEDS, found)}) == wrong


def test_requirements_of_extras_and_of_other_pythons_do_not_count() -> None:
    lines = ["a; extra == 'x'", "b; python_version < '3.11'", "c; python_version >= '3.11'"]
    assert [r.name for r in applying(lines, "3.11")] == ["c"]
    assert [r.name for r in applying(lines, "3.10")] == ["b"]


def test_what_the_runner_itself_cannot_use_is_named_with_what_it_needs() -> None:
    required = applying(["pydantic>=2.7", "httpx>=0.27"], MINOR)
    assert unmet(required, {"pydantic": "2.7", "starlette": "0.1"}) == []
    found = {"pydantic": "1.10", "httpx": "0.28"}
    assert refusal(unmet(required, found), found, "the image brings") == (
        "the image brings pydantic 1.10, and the runner needs pydantic>=2.7: allow such a version"
    )


def test_of_several_needs_the_one_that_asks_most_is_told() -> None:
    wrong = applying(["a>=4.10", "A>=4.16", "a==4.9.*"], MINOR)
    assert "needs a>=4.16:" in refusal(wrong, {"a": "4.2"}, "requirements bring")


def silent(line: str) -> None:
    """Progress for those who do not look."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("libraries")


async def test_libraries_are_made_again_beside_what_they_cannot_use_and_are_shared(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def libraries(**found: str) -> Path:
        names = {name.replace("_", "-"): version for name, version in found.items()}
        return await ensure_runner_libraries(root, sys.executable, MINOR, silent, names)

    usual = await libraries()
    other = await libraries(typing_extensions="4.12.2", numpy="1.0")
    assert usual != other
    assert misfits(needs_of(other, MINOR), {"typing-extensions": "4.12.2"}) == []
    monkeypatch.setattr(uv_process, "_program", lambda: pytest.fail("uv was called"))
    assert await libraries(numpy="2.0", click="8.1.0") == usual
    assert await libraries(typing_extensions="4.12.2", numpy="2.0") == other


def test_a_pin_leaves_no_choice() -> None:
    layers = [["a==1", "B_c == 2.0", "d>=1", "e==1,!=2"], ["./f", "g==1; python_version<'3'"]]
    assert pinned([*layers, ["h==1.*"]]) == {"a": "1", "b-c": "2.0"}


async def test_what_no_libraries_go_with_is_told_with_what_the_newest_need(root: Path) -> None:
    said = (
        r"^requirements bring h11 0\.9\.0, and the runner needs h11>=[\d.]+: allow such a version$"
    )
    with pytest.raises(BuildError, match=said):
        await ensure_runner_libraries(root, sys.executable, MINOR, silent, {"h11": "0.9.0"})


def test_the_versions_of_an_environment_are_read_from_its_files(tmp_path: Path) -> None:
    for name in ("Typing_Extensions-4.7.0.dist-info", "a-1+cu1.dist-info", "a", "b.py"):
        (tmp_path / "lib" / "python3.11" / "site-packages" / name).mkdir(parents=True)
    found = installed(tmp_path / "bin" / "python")
    assert found == {"typing-extensions": "4.7.0", "a": "1+cu1"}


CELL = """%%fal_function {name} wait=true {options}
def {name}(package: str) -> str:
    from importlib.metadata import version
    return version(package)
"""


SERVER = f"""%%fal_function dated requirements={OLD_PINS[1]} exposed_port=8000 wait=true
def dated() -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from importlib.metadata import version
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            told = version("typing-extensions").encode()
            self.send_response(200)
            self.send_header("content-length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)
    HTTPServer(("127.0.0.1", 8000), Answer).serve_forever()
"""


@pytest.mark.parametrize("pin", ["typing-extensions==4.12.2", "anyio==4.0.0", ",".join(OLD_PINS)])
def test_old_dependencies_of_the_runners_libraries_are_kept_and_work(shell: Any, pin: str) -> None:
    shell.run(CELL.format(name="dated", options=f"requirements={pin}"))
    for name, _, version in (word.partition("==") for word in pin.split(",")):
        assert shell["dated"](name) == version


def test_a_server_may_have_them_too(shell: Any) -> None:
    shell.run(SERVER)
    assert shell["dated"].request("GET", "/").text == OLD["typing-extensions"]


@pytest.mark.parametrize(
    "pin", ["typing-extensions==4.7.0", "pydantic==2.5.0", "httpx==0.20.0", "cloudpickle==1.6.0"]
)
def test_what_the_runner_cannot_use_is_refused_before_anything_is_built(
    shell: Any, pin: str, capsys: Any
) -> None:
    name, _, version = pin.partition("==")
    said = rf"requirements bring {name} {version}[^\n]*, and the runner needs {name}[>!]="
    with pytest.raises(UsageError, match=said) as caught:
        shell.run(CELL.format(name="dated", options=f"requirements={pin}"))
    assert "Traceback" not in str(caught.value)
    assert "making the environment" not in capsys.readouterr().out
