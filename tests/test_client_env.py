"""What `client-env` prints: for each kind of client, with a key when one is asked for."""

from __future__ import annotations

import ast
import subprocess

import httpx
import pytest

from fal_notebook import cli, client_env
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import OptionError


def shown(*options: str) -> str:
    return str(cli.run(["client-env", *options], "fal-notebook"))


def test_without_a_kind_all_are_shown(gateway: GatewayInfo) -> None:
    text = shown()
    assert text == "\n\n".join(shown(kind) for kind in ("--sh", "--python", "--js"))
    for kind in ("--sh", "--python", "--js"):
        assert shown(kind).count("--key") == 1


def test_a_key_that_is_there_stays_without_a_new_one(gateway: GatewayInfo) -> None:
    script = shown("--sh") + '\necho "$FAL_KEY"'
    run = {"capture_output": True, "text": True, "check": True}
    assert subprocess.run(["sh", "-c", script], env={"FAL_KEY": "a:b"}, **run).stdout == "a:b\n"
    assert "FAL_KEY" not in [node.value for node in constants(shown("--python"))]
    assert 'credentials: "' not in shown("--js")


def constants(program: str) -> list[ast.Constant]:
    return [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)]


def test_two_kinds_at_once_are_refused(gateway: GatewayInfo) -> None:
    with pytest.raises(OptionError, match="one of --sh, --python and --js"):
        shown("--sh", "--js")


def test_a_key_is_made_when_asked_for_and_works(gateway: GatewayInfo) -> None:
    before = len(keys())
    text = shown("--python", "--key")
    made = keys()[before:]
    assert len(made) == 1
    key = text.rsplit('= "', 1)[1].rstrip('"')
    assert key.startswith(made[0])
    headers = {"authorization": f"Key {key}"}
    assert httpx.get(f"{gateway.url}/metrics", headers=headers).is_success
    cli.run(["keys", "revoke", made[0]], "fal-notebook")


def keys() -> list[str]:
    lines = str(cli.run(["keys", "list"], "fal-notebook")).splitlines()
    return [line.split()[0] for line in lines if "client-env" in line]


def test_python_is_python_and_turns_every_address(gateway: GatewayInfo) -> None:
    text = client_env.python("http://127.0.0.1:1", "a:b")
    ast.parse(text)
    assert text.count("127.0.0.1:1/") == 5
    assert 'REALTIME_URL_FORMAT = "ws://127.0.0.1:1/run/"' in text


@pytest.mark.parametrize("proxied", [True, False])
def test_a_proxy_is_not_asked_for_this_machine(monkeypatch, proxied: bool) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    if proxied:
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    script = (
        client_env.shell(1, "/a folder/bundle.pem", "a:b") + '\necho "$NO_PROXY|$SSL_CERT_FILE"'
    )
    run = {"capture_output": True, "text": True, "check": True}
    done = subprocess.run(["sh", "-c", script], env={"NO_PROXY": "b.test"}, **run)
    expected = "127.0.0.1,b.test" if proxied else "b.test"
    assert done.stdout.strip() == f"{expected}|/a folder/bundle.pem"
