"""What an environment holds for the runner: FastAPI, where an endpoint needs it, and only there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, Header, Response
from IPython.core.error import UsageError
from starlette.websockets import WebSocket

import fal_notebook as fal
from fal_notebook.backends.requirement_layers import layers_of
from fal_notebook.options import Options
from fal_notebook.payload.runner_needs import added_to, modules_for


def plain(x: int) -> int:
    return x


def with_header(x: int, token: str = Header("")) -> int:
    return x


def with_response(x: int, response: Response) -> int:
    return x


class Plain(fal.App):
    @fal.endpoint("/")
    def first(self, x: int) -> int:
        return x

    @fal.endpoint("/socket", is_websocket=True)
    async def talk(self, socket: WebSocket) -> None: ...


class WithPath(fal.App):
    @fal.endpoint("/x/{name}")
    def first(self, name: str) -> str:
        return name


class WithSocketPath(Plain):
    @fal.endpoint("/more/{name}", is_websocket=True)
    async def more(self, socket: WebSocket, name: str) -> None: ...


class WithDependency(Plain):
    @fal.endpoint("/second")
    def second(self, x: int, y: int = Depends(plain)) -> int:
        return x


@pytest.mark.parametrize("served", [plain, Plain, "a command"])
def test_most_need_nothing(served: Any) -> None:
    assert modules_for(served) == frozenset()


@pytest.mark.parametrize(
    "served", [with_header, with_response, WithPath, WithSocketPath, WithDependency]
)
def test_what_only_fastapi_knows_needs_fastapi(served: Callable[..., Any]) -> None:
    assert modules_for(served) == {"fastapi", "python_multipart"}


ADDED = ["fastapi", "python-multipart"]


def test_what_fal_adds_is_in_an_environment_also_when_only_the_code_uses_it() -> None:
    for served in (Plain, plain, WithPath):
        assert added_to(served, Options(requirements=["six"])) == ADDED
    assert added_to(WithPath, Options(image="own/image:latest")) == ADDED


def test_nothing_is_added_to_what_there_is_or_to_a_server() -> None:
    assert added_to(WithPath, Options()) == added_to(WithPath, Options(requirements=[])) == []
    assert added_to(Plain, Options(image="own/image:latest")) == []
    assert added_to(plain, Options(requirements=["six"], exposed_port=8000)) == []
    assert added_to("a command", Options(requirements=["six"])) == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["six"], [["six", *ADDED]]),
        (None, [ADDED]),
        ([["pydantic<2.9"], ["six"]], [["pydantic<2.9"], ["pydantic<2.9", "six", *ADDED]]),
        ([["FastAPI[all]>=0.115"], ["six"]], None),
        (["fastapi==0.115.0", "python_multipart"], [["fastapi==0.115.0", "python_multipart"]]),
        (["fastapi-utils"], [["fastapi-utils", *ADDED]]),
        (
            [["./own", "a @ file:///a", "--pre", "b"], ["six"]],
            [["./own", "a @ file:///a", "--pre", "b"], ["b", "six", *ADDED]],
        ),
    ],
)
def test_what_is_added_is_resolved_together_with_all_that_the_user_names(
    given: Any, expected: Any
) -> None:
    expected = expected or [
        ["FastAPI[all]>=0.115"],
        ["FastAPI[all]>=0.115", "six", "python-multipart"],
    ]
    assert layers_of({"requirements": given}, {"added": ADDED}) == expected


def test_without_additions_the_layers_are_the_given_ones_or_what_is_imported() -> None:
    assert layers_of({"requirements": [["a"], [], ["b"]]}, {}) == [["a"], ["b"]]
    assert layers_of({"requirements": None}, {"distributions": ["a==1"]}) == [["a==1"]]
    assert layers_of({"requirements": []}, {"distributions": ["a==1"]}) == []


VERSIONS = """%%fal_function wait=true {}
def versions(name: str) -> str:
    from importlib.metadata import version
    return version(name)
"""


@pytest.mark.parametrize("target", ["local", "docker"])
def test_versions_that_the_user_names_are_kept(containers: Path, shell: Any, target: str) -> None:
    shell.run(
        VERSIONS.format(f"target={target} requirements=[['pydantic==2.8.2'],['anyio==4.0.0']]")
    )
    assert [shell["versions"](name) for name in ("pydantic", "anyio")] == ["2.8.2", "4.0.0"]
    assert shell["versions"].status()["options"]["requirements"] == [
        ["pydantic==2.8.2"],
        ["anyio==4.0.0"],
    ]


@pytest.mark.parametrize("target", ["local", "docker"])
def test_a_pydantic_that_the_runner_cannot_work_with_is_refused(
    containers: Path, shell: Any, target: str
) -> None:
    with pytest.raises(
        UsageError, match=r"bring pydantic 1\.10\.13, and the runner needs pydantic>=2"
    ):
        shell.run(VERSIONS.format(f"target={target} requirements=pydantic==1.10.13"))


APP = """%%fal_app auth=public serve=true wait=true {}
import fal_notebook as fal

class Greeter(fal.App):
    @fal.endpoint("/to/{{name}}")
    def to(self, name: str) -> str:
        return "hello " + name
"""


def test_httpexception_is_there_beside_other_requirements(shell: Any) -> None:
    shell.run(
        "%%fal_app auth=public serve=true wait=true requirements=six\n"
        "import fal_notebook as fal\nfrom fastapi import HTTPException, UploadFile\n"
        "class Refuses(fal.App):\n"
        "    @fal.endpoint('/')\n    def refuse(self, x: int):\n"
        "        import six\n        raise HTTPException(418, six.text_type(x))\n"
        "    @fal.endpoint('/file')\n    def file(self, f: UploadFile) -> int:\n"
        "        return len(f.file.read())\n"
    )
    url = shell["Refuses"].url
    assert httpx.post(url, json={"x": 7}).json() == {"detail": "7"}
    assert httpx.post(f"{url}/file", files={"f": b"abc"}).json() == 3
    shell["Refuses"].delete()


def test_a_fastapi_that_is_too_old_is_named(shell: Any) -> None:
    with pytest.raises(UsageError, match=r"FastAPI 0.110.0 is too old.*fastapi>=0.115"):
        shell.run(APP.format("requirements=fastapi==0.110.0"))


@pytest.mark.parametrize(
    "options", ["target=docker", "target=docker requirements=six", "target=local requirements=six"]
)
def test_a_path_with_a_parameter_is_served_everywhere(
    containers: Path, shell: Any, options: str
) -> None:
    shell.run(APP.format(options))
    reply = httpx.post(f"{shell['Greeter'].url}/to/you")
    assert (reply.status_code, reply.json()) == (200, "hello you")
