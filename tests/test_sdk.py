"""Classes of fal's own SDK in cells, with the real package in an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import control

from fal_notebook.discovery import GatewayInfo

SCRIPT = """
import json, ssl, sys
from IPython.core.interactiveshell import InteractiveShell
import __main__
__main__.__dict__.pop("__file__", None)  # as in a kernel
shell, cells, found = InteractiveShell.instance(), json.load(sys.stdin), {}
shell.run_line_magic("load_ext", "fal_notebook")
shell.showtraceback = shell._showtraceback = lambda *a, **k: None
for name, cell in cells.items():
    result = shell.run_cell(cell, store_history=True, silent=False)
    error = result.error_before_exec or result.error_in_exec
    found[name] = f"{type(error).__name__}: {error}" if error else result.result
    assert not hasattr(__main__, "__file__"), name
print("ANSWERS" + json.dumps(found, default=repr))
"""
HEAD = """
import fal, os
from fal.toolkit import Image
from pydantic import BaseModel
"""
PAINTER = (
    HEAD
    + """
from fastapi.responses import StreamingResponse
class Asked(BaseModel):
    prompt: str
    n: int = 1
class Drawn(BaseModel):
    text: str
    image: Image | None = None
class Painter(fal.App, keep_alive=33, max_concurrency=2):
    machine_type = "XS"
    retry_config = fal.sdk.RetryConfig(timeout=4)
    def setup(self):
        self.word = "ready"
    @fal.endpoint("/", health_check=fal.HealthCheck(failure_threshold=2))
    def draw(self, asked: Asked) -> Drawn:
        return Drawn(text=f"{asked.prompt * asked.n} {self.word}")
    @fal.endpoint("/plain")
    def plain(self, a: int, b: str = "x") -> dict:
        return {"a": a, "b": b, "here": fal.ref.get_current_app() is self}
    @fal.endpoint("/image")
    def image(self, asked: Asked) -> Drawn:
        return Drawn(text="i", image=Image.from_bytes(b"pixels", "png"))
    @fal.endpoint("/events")
    async def events(self, asked: Asked):
        async def parts():
            for number in range(asked.n):
                yield f'data: {{"number": {number}}}\\n\\n'
        return StreamingResponse(parts(), media_type="text/event-stream")
    @fal.endpoint("/environment")
    def environment(self) -> dict:
        keys = ("FAL_REST_HOST", "FAL_CDN_V3_HOST", "SSL_CERT_FILE", "FAL_HOST")
        kept = self.current_request.lifecycle_preference
        return {**{key: os.environ.get(key) for key in keys}, "kept": kept}
"""
)
SMALL = """
class Small(fal.App):
    {}
    @fal.endpoint("/")
    def f(self) -> str:
        import {}
        return fal.__version__
"""
LATE = """
from __future__ import annotations
from fastapi import Request
class Given(BaseModel):
    n: int
class Late(fal.App, name="quite-late", _scheduler="nomad"):
    @fal.endpoint("/")
    def f(self, given: Given, request: Request) -> int:
        return given.n + len(fal.__name__)
"""
LOCAL = """
class Local(fal.App, requirements_context_dir="/nowhere"):
    requirements = ["./own"]
    @fal.endpoint("/")
    def f(self) -> int:
        return 1
"""
CELLS = {
    "deploy": f"%%fal_app wait=true max_concurrency=1\n{PAINTER}",
    "model": "Painter.draw(prompt='a', n=2)",
    "instance": "Painter.draw(Asked(prompt='b')).text",
    "root": "Painter(prompt='c').text",
    "plain": "Painter.plain(3)",
    "path": "Painter['/plain'](a=3, b='y')",
    "submit": "Painter.plain.submit(4, b='q').result()",
    "map": "[d['text'] for d in Painter.draw.map([Asked(prompt='1'), Asked(prompt='2')])]",
    "stream": "list(Painter.events.stream(prompt='', n=3))",
    "wrong": "Painter.draw(n=1)",
    "image": "Painter.image(prompt='').image.url",
    "environment": "Painter.environment()",
    "outer": "%%fal_function wait=true\ndef outer(n: int) -> list:\n"
    "    return [Painter.draw(prompt='a', n=n).text, Painter.plain(n)['b']]",
    "inside": "outer(2)",
    "options": "Painter.status()['options']",
    "paths": "list(Painter.openapi()['paths'])",
    "function": "%%fal_function wait=true\ndef plain(n: int) -> str:\n"
    "    return fal.toolkit.Image.__module__ + str(n)",
    "called": "plain(2)",
    "size": "from fal_notebook import capture\ncapture(plain.original).captured",
    "decorated": "%%fal_function\n@fal.function('virtualenv')\ndef f(): pass",
    "keyword": "%%fal_app\nclass Odd(fal.App, keep_alives=3):\n"
    "    @fal.endpoint('/')\n    def f(self): pass",
    "endpoints": "%%fal_app\nclass Bare(fal.App): pass",
    "setup": "%%fal_app wait=true\nclass Fails(fal.App):\n"
    "    def setup(self): raise ValueError('nope-sdk')\n"
    "    @fal.endpoint('/')\n    def f(self): pass",
    "own": "%%fal_app wait=true\n" + SMALL.format('requirements = ["iniconfig"]', "iniconfig"),
    "installed": "Small()",
    "key": "import os\nos.environ['FAL_KEY'] = KEY = '0a1b2c3d4e5f:' + '0a1b2c3d4e5f' * 4",
    "late": "%%fal_app wait=true\n" + LATE,
    "lately": "Late.f(n=2), Late.wait().name",
    "local": "%%fal_app dry_run=true\n" + LOCAL,
    "end": "for handle in (Painter, plain, Small, Late): handle.delete()",
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has fal's SDK, and all that this one has."""
    folder = tmp_path_factory.mktemp("sdk") / "env"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([*uv, "pip", "install", "-q", "--python", str(python), "fal>=1.80"], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    own = sysconfig.get_path("purelib")
    (site / "zz_own.pth").write_text(f"import site; site.addsitedir({own!r})\n")
    return python


@pytest.fixture(scope="module")
def answers(python: Path, gateway: GatewayInfo) -> dict[str, Any]:
    """What the cells gave, or the error each of them raised."""
    done = subprocess.run(
        [str(python), "-c", SCRIPT], input=json.dumps(CELLS), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.rpartition("ANSWERS")[2])
    assert found["deploy"] is None
    assert found["own"] is None
    return found


def test_a_class_of_the_sdk_is_called_like_any_app(answers: dict[str, Any]) -> None:
    assert answers["model"] == "Drawn(text='aa ready', image=None)"
    assert (answers["instance"], answers["root"]) == ("b ready", "c ready")
    assert answers["plain"] == {"a": 3, "b": "x", "here": True}
    assert answers["path"] == {"a": 3, "b": "y", "here": True}
    assert answers["stream"] == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert "422" in answers["wrong"]
    assert "prompt" in answers["wrong"]


def test_its_handle_inside_another_app_has_its_endpoints(answers: dict[str, Any]) -> None:
    assert answers["outer"] is None
    assert answers["inside"] == ["aa ready", "x"]


def test_its_endpoints_go_through_the_queue(answers: dict[str, Any]) -> None:
    assert answers["submit"] == {"a": 4, "b": "q", "here": True}
    assert answers["map"] == ["1 ready", "2 ready"]


def test_its_options_are_those_of_the_class_and_the_line(answers: dict[str, Any]) -> None:
    options = answers["options"]
    assert (options["keep_alive"], options["machine_type"]) == (33, "XS")
    assert options["max_concurrency"] == 1
    assert options["retry_config"]["timeout"] == {"retries": 4}
    check = options["health_check"]
    assert (check["path"], check["failure_threshold"], check["method"]) == ("/", 2, "POST")
    assert set(answers["paths"]) >= {"/", "/plain", "/image", "/health"}


def test_it_is_told_how_long_files_are_kept(answers: dict[str, Any]) -> None:
    assert answers["environment"]["kept"] == {"expiration_duration_seconds": 2592000}


def test_its_toolkit_uploads_here(answers: dict[str, Any], gateway: GatewayInfo) -> None:
    url = httpx.URL(answers["image"])
    assert (url.scheme, url.host) == ("https", "localhost")
    assert answers["environment"]["FAL_REST_HOST"] == f"localhost:{url.port}/rest"
    assert answers["environment"]["FAL_HOST"] is None
    with control(gateway) as client:
        assert client.get(url.raw_path.decode()).content == b"pixels"
    import ssl

    trusted = ssl.create_default_context(cafile=answers["environment"]["SSL_CERT_FILE"])
    assert httpx.get(url, verify=trusted, trust_env=False).content == b"pixels"


def test_the_sdk_itself_does_not_travel(answers: dict[str, Any]) -> None:
    assert answers["called"] == "fal.toolkit.image.image2"
    assert "Captured(name='fal', kind='module', size=0)" in answers["size"]


def test_an_environment_of_its_own_has_the_sdk_too(answers: dict[str, Any]) -> None:
    assert answers["installed"].startswith("1.")


def test_annotations_that_are_text_are_known_in_the_runner(answers: dict[str, Any]) -> None:
    assert answers["late"] is None, answers["late"]
    assert answers["lately"] == [5, "quite-late"]


def test_a_setup_that_raises_says_what(answers: dict[str, Any]) -> None:
    first = answers["setup"].splitlines()[0]
    assert first.startswith("UsageError: %%fal_app: fails: the server ended with exit status 3")
    assert first.endswith("before it opened its port: ValueError: nope-sdk")


REFUSED = {
    "decorated": "write @fal_notebook.function",
    "keyword": "class `Odd`: unknown option 'keep_alives'; did you mean 'keep_alive'?",
    "endpoints": "class `Bare` has no endpoint",
    "local": "requirements names ./own, but /nowhere/own does not exist",
}


@pytest.mark.parametrize("cell", REFUSED)
def test_what_cannot_be_deployed_is_refused_in_a_sentence(
    answers: dict[str, Any], cell: str
) -> None:
    assert answers[cell].startswith("UsageError: ")
    assert REFUSED[cell] in answers[cell]


def test_nothing_here_imports_the_sdk(python: Path) -> None:
    code = (
        "import sys, fal_notebook, fal_notebook.deploying, fal_notebook.magics.app;"
        "assert not any(name.split('.')[0] == 'fal' for name in sys.modules)"
    )
    subprocess.run([str(python), "-c", code], check=True)
