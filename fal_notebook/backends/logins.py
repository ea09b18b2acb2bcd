"""Credentials at the moment they are used: given with an image, or by the user's `docker login`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docker import auth
from docker.errors import DockerException

from fal_notebook.backends import children
from fal_notebook.exceptions import RegistryError
from fal_notebook.registries import HUB, HUB_KEY, Password, engine_key, host_of_key

# A command that gives a password has so long (seconds).
PATIENCE = 60.0
# What credential helpers call a token that stands for user and password.
_TOKEN = "<token>"

Given = Mapping[str, Mapping[str, Password]]


@dataclass(frozen=True)
class Login:
    """Credentials for one registry, and where they came from, for people."""

    username: str
    password: str = field(repr=False)
    source: str
    is_token: bool = False

    @property
    def for_engine(self) -> dict[str, str]:
        """As the engine's API takes them."""
        if self.is_token:
            return {"identitytoken": self.password}
        return {"username": self.username, "password": self.password}

    @property
    def for_file(self) -> dict[str, str]:
        """As an entry of Docker's config.json."""
        if self.is_token:
            return {"identitytoken": self.password}
        text = f"{self.username}:{self.password}"
        return {"auth": base64.b64encode(text.encode()).decode()}


async def login(host: str, given: Given, source: str = "") -> Login | None:
    """Return the credentials for a registry, asked anew; None when there are none.

    Those given, with the image or by what `source` names, come first, then Docker's own
    configuration (``DOCKER_CONFIG``, else ``~/.docker``) with its credential helpers.

    Raises
    ------
    RegistryError
        When a command or helper fails, or the configuration cannot be read.
    """
    entries = {host_of_key(key): entry for key, entry in given.items()}
    if host in entries:
        return await _given(host, entries[host], source)
    return await _configured(host)


async def logins(hosts: Collection[str], given: Given) -> dict[str, Login]:
    """Return the credentials for several registries, without those that have none."""
    found = {host: await login(host, given) for host in sorted(hosts)}
    return {host: one for host, one in found.items() if one is not None}


def header(found: Mapping[str, Login]) -> dict[str, str]:
    """Return the header with which the engine's builder uses private images."""
    known = {engine_key(host): one.for_engine for host, one in found.items()}
    if not known:
        return {}
    return {"X-Registry-Config": auth.encode_header(known).decode()}


@contextlib.contextmanager
def folder(found: Mapping[str, Login]) -> Iterator[Path]:
    """Give a private folder for ``DOCKER_CONFIG`` of one call of the `docker` command."""
    entries = {engine_key(host): one.for_file for host, one in found.items()}
    with tempfile.TemporaryDirectory(prefix="fal-login-") as private:  # 0700
        path = Path(private, "config.json")
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            json.dump({"auths": entries}, file)
        yield Path(private)


async def _given(host: str, entry: Mapping[str, Password], source: str) -> Login:
    username, password = str(entry["username"]), entry["password"]
    if isinstance(password, str):
        return Login(username, password, source or "the image's registries")
    shown = " ".join(password[:1])
    what = f"the command {shown} that gives the password of {host}"
    return Login(username, await _output(what, password), f"the command {shown}")


async def _configured(host: str) -> Login | None:
    """Look into what `docker login` wrote, as it is now."""
    try:
        config = await asyncio.to_thread(auth.load_config)
        helper = config.get_credential_store(HUB_KEY if host == HUB else host)
        asked = await _helped(host, helper) if helper else None
        entry = auth.AuthConfig({"auths": config.auths}).resolve_authconfig(host)
    except (DockerException, ValueError, TypeError, AttributeError) as error:
        raise RegistryError(
            f"Docker's configuration for {host} cannot be read ({error}); run "
            f"`docker login {host}` again"
        ) from None
    return asked or _of_entry(entry or {})


def _of_entry(entry: Mapping[str, Any]) -> Login | None:
    if entry.get("IdentityToken"):
        return Login("(token)", entry["IdentityToken"], "`docker login`", is_token=True)
    if entry.get("username"):
        return Login(entry["username"], entry["password"], "`docker login`")
    return None


async def _helped(host: str, helper: str) -> Login | None:
    """Ask a credential helper of the user's; None when it does not know the registry."""
    program = f"docker-credential-{helper}"
    what = f"the credential helper {program} for {host}"
    text = await _output(what, [program, "get"], engine_key(host), unknown="not found")
    try:
        answer = json.loads(text) if text else {"Username": "", "Secret": ""}
        username, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise RegistryError(f"{what} gave no user and secret") from None
    if not secret:
        return None
    return Login(username, secret, f"`{program}`", is_token=username == _TOKEN)


async def _output(what: str, command: list[str], told: str = "", unknown: str = "") -> str:
    """Return what a program prints; empty when it fails with a word that says so."""
    pipe = asyncio.subprocess.PIPE
    try:
        with tempfile.TemporaryFile() as asked:  # a pipe may be closed by who does not read it
            asked.write(told.encode())
            asked.seek(0)
            process = await children.start(
                *command, stdin=asked, stdout=pipe, stderr=pipe, start_new_session=True
            )
    except OSError as error:
        raise RegistryError(f"{what} cannot be run: {error.strerror or error}") from None
    try:
        output, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    except asyncio.TimeoutError:
        raise RegistryError(f"{what} gave none within {PATIENCE:.0f} s") from None
    finally:
        if process.returncode is None:  # with all that it started, or its pipes stay open
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    text = output.decode(errors="replace").strip()
    if process.returncode and unknown and unknown in text:
        return ""
    if process.returncode or not (text or unknown):
        last = (errors.decode(errors="replace").strip().splitlines() or ["nothing"])[-1][:200]
        raise RegistryError(f"{what} failed with status {process.returncode}; it said: {last}")
    return text
