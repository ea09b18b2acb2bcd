"""What each option does to a runner: what it is made of and sees, how it starts and ends."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from effects import effect_of, given
from serving import ACT, defined, deployed, events, eventually, run_url

from fal_notebook import cli
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import DeployError, OptionError
from fal_notebook.options import parse_options

ENVIRONMENT = "import os\ndef seen(name: str) -> str:\n    return os.environ.get(name, '')"


@effect_of("setup_function")
def test_what_setup_returns_is_the_first_argument() -> None:
    source = "def uses(made: list = [], x: int = 1) -> int:\n    return len(made) + x"
    with deployed(source, **given(setup_function=defined("def made(): return [1, 2]"))) as uses:
        assert uses(x=3) == 5


@effect_of("startup_timeout")
def test_a_setup_that_takes_too_long_fails_the_deploy() -> None:
    slow = defined("import time\ndef made(): time.sleep(6)")
    with (
        pytest.raises(DeployError, match="startup_timeout=1 s"),
        deployed(ACT, **given(startup_timeout=1), setup_function=slow),
    ):
        pass


@effect_of("termination_grace_period_seconds")
def test_a_request_may_end_within_the_grace() -> None:
    options = {**given(termination_grace_period_seconds=20), "keep_alive": 60}
    with deployed(ACT, **options) as act, ThreadPoolExecutor() as pool:
        answer = pool.submit(act, do="sleep", n=8)
        eventually(lambda: act.runners()[0]["in_flight"])
        act.delete()
        assert answer.result() == 8


@effect_of("secrets")
def test_a_runner_sees_the_secrets_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFECT_OF_SECRETS", "kept safe")
    cli.run(["secrets", "set", "EFFECT_OF_SECRETS", "--from-env"], "fal-notebook")
    monkeypatch.delenv("EFFECT_OF_SECRETS")
    try:
        with deployed(ENVIRONMENT, **given(secrets=["EFFECT_OF_SECRETS"])) as seen:
            assert seen("EFFECT_OF_SECRETS") == "kept safe"
    finally:
        cli.run(["secrets", "delete", "EFFECT_OF_SECRETS"], "fal-notebook")


@effect_of("pass_env")
def test_a_runner_sees_variables_that_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFECT_OF_PASS_ENV", "passed")
    with deployed(ENVIRONMENT, **given(pass_env=["EFFECT_OF_PASS_ENV"])) as seen:
        assert seen("EFFECT_OF_PASS_ENV") == "passed"


@effect_of("local_python_modules")
def test_a_module_is_shipped_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shipped_by_value.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "def uses() -> int:\n    import shipped_by_value\n    return shipped_by_value.answer()"
    with deployed(source, **given(local_python_modules=["shipped_by_value"])) as uses:
        assert uses() == 42


@effect_of("python_version")
def test_another_python_is_refused() -> None:
    other = "3.10" if sys.version_info[:2] != (3, 10) else "3.11"
    with (
        pytest.raises(OptionError, match="python_version"),
        deployed(ACT, **given(python_version=other)),
    ):
        pass


@effect_of("requirements")
def test_a_runner_has_the_packages_that_are_required() -> None:
    source = "def says() -> str:\n    import cowsay\n    return cowsay.__name__"
    with deployed(source, **given(requirements=["cowsay"])) as says:
        assert says() == "cowsay"


@effect_of("compile_bytecode")
def test_modules_are_compiled_before_anybody_imports_them() -> None:
    source = """
def compiled() -> bool:
    import importlib.util, os
    return os.path.exists(importlib.util.find_spec("six").cached)
"""
    with deployed(source, requirements=["six"], **given(compile_bytecode=True)) as compiled:
        assert compiled()


@effect_of("force")
def test_an_environment_is_built_again(gateway: GatewayInfo) -> None:
    source = "def place() -> str:\n    import sys\n    return sys.prefix"
    with deployed(source, requirements=["six"]) as place:
        before = place()
        with deployed(source, requirements=["six"], **given(force=True)):
            assert place() != before


@effect_of("exposed_port")
def test_a_server_gets_the_traffic_as_it_is(gateway: GatewayInfo) -> None:
    source = """
import http.server, os

class Own(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(203)
        self.end_headers()
        self.wfile.write(self.path.encode())

def serves() -> None:
    http.server.HTTPServer(("127.0.0.1", int(os.environ.get("PORT", 0))), Own).serve_forever()
"""
    with deployed(source, **given(exposed_port=8123), auth="public") as serves:
        reply = httpx.get(run_url(gateway, serves) + "/own/path?x")
        assert (reply.status_code, reply.text) == (203, "/own/path?x")


@effect_of("message")
def test_a_note_is_kept_with_the_revision() -> None:
    with deployed(ACT, **given(message="for the fair")) as act:
        assert act.status()["options"]["message"] == "for the fair"


@effect_of("kind")
def test_a_kind_that_contradicts_is_refused() -> None:
    with pytest.raises(OptionError, match="needs image"), deployed(ACT, **given(kind="container")):
        pass


@effect_of("data_mounts")
def test_the_shared_storage_appears_where_it_is_asked_for(tmp_path: Path) -> None:
    place = str(tmp_path / "models")
    source = """
def writes(folder: str, text: str) -> str:
    import os, pathlib
    pathlib.Path(folder, "effect.txt").write_text(text)
    return pathlib.Path(os.environ["FAL_DATA_DIR"], "effect.txt").read_text()
"""
    with deployed(source, **given(data_mounts=[place])) as writes:
        assert writes(place, "shared") == "shared"
        assert not os.path.exists("/data/effect.txt")
        assert list((tmp_path / "models").iterdir()) == []  # nobody else sees it there


def test_a_place_that_holds_something_is_told_at_the_deploy(
    tmp_path: Path, private_state: Path
) -> None:
    (tmp_path / "mine").touch()
    told = f"data_mounts: the shared storage cannot be shown at {tmp_path} here"
    with deployed(ACT, data_mounts=[str(tmp_path)]) as act:
        (note,) = [e for e in events(private_state, "act", "deploy") if told in e["message"]]
        assert note["step"] == "note"
        assert told in "".join(line["message"] for line in act.logs())


@pytest.mark.parametrize("place", ["/", "/proc", "/etc", "/usr", "/sys/fs/mine", "/dev/shm"])
def test_a_folder_of_the_system_is_no_place_for_the_shared_storage(place: str) -> None:
    with pytest.raises(OptionError, match=f"{place} is the system's; name a folder of your own"):
        parse_options({"data_mounts": [place]})


@pytest.mark.parametrize("place", ["/a/../b", "relative", "/a:b", "/a//b", "/a/"])
def test_a_place_that_no_container_could_have_is_refused(place: str) -> None:
    with pytest.raises(OptionError, match="data_mounts"):
        parse_options({"data_mounts": [place]})
