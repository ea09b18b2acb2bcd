"""Secrets by name: set, listed without values, deleted; looked for in every payload."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Collection
from typing import Any

from pydantic import BaseModel, Field

from fal_notebook.envs import MAIN
from fal_notebook.exceptions import (
    NotFoundError,
    OptionError,
    PayloadMissingError,
    StoredSecretError,
)
from fal_notebook.gateway import paths
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.operations import blobs, envs
from fal_notebook.gateway.store import Secret
from fal_notebook.option_types import check_secret_name
from fal_notebook.runner.secret_forms import SHORTEST

# Shorter values stand in payloads by chance.
_SHORTEST_LOOKED_FOR = 8
# The longest value in bytes: a variable of a process has 128 KiB at most.
_LONGEST = 64 * 1024
# Where files stand that hold a secret, and what to do about it.
_BUILD_CONTEXT = (
    "the build context",
    "leave it out with dockerignore, or give the build secrets={…} of the image",
)
_APP_FILES = "app_files", "leave it out with app_files_ignore, and name the secret in secrets=[…]"


def put(gateway: Gateway, env: str, name: str, value: str) -> None:
    """Store a secret, or replace it; runners that start from now on get the new value.

    Raises
    ------
    OptionError
        When the name is no name of an environment variable, or is reserved, and when the value is
        empty, too long, or so short that it could not be taken out of logs.
    NotFoundError
        When there is no such environment.
    """
    check_secret_name(name)
    envs.check(gateway, env)
    if value and len(value.strip()) < SHORTEST:
        shortest = f"the value of {name} has fewer than {SHORTEST} characters"
        raise OptionError(f"{shortest}: it would stand in logs by chance, so nothing redacts it")
    if not value or "\0" in value:
        raise OptionError(f"the value of {name} is empty or holds a NUL")
    if len(value.encode()) > _LONGEST:
        raise OptionError(f"the value of {name} is above {_LONGEST // 1024} KiB")
    with gateway.store.transaction():
        gateway.store.retire_secret(env, name)
        gateway.store.put(Secret(name, gateway.vault.encrypt(value), env))
        _tell(gateway, env, name, "set")


def list_secrets(gateway: Gateway, tried: bool = False) -> list[dict[str, Any]]:
    """Return name, environment and time of every secret, never a value.

    If they are to be `tried`, also whether each can be read: that costs more than names do.
    """
    found = gateway.store.select(Secret, "1 ORDER BY env != 'main', env, name")
    return [
        {
            "name": each.name,
            "env": each.env,
            "set_at": each.set_at,
            **({"readable": gateway.vault.reads(each.value)} if tried else {}),
        }
        for each in found
    ]


def delete(gateway: Gateway, env: str, name: str) -> None:
    """Remove a secret; runners that have it keep it until they end.

    Raises
    ------
    NotFoundError
        When there is none of that name.
    """
    if not gateway.store.select(Secret, "env = ? AND name = ?", env, name):
        where = "" if env == MAIN else f" in {env}"
        raise NotFoundError(
            f"there is no secret {name}{where}; '%fal secrets list' shows all names"
        )
    with gateway.store.transaction():
        gateway.store.delete_secret(env, name)
        _tell(gateway, env, name, "deleted")


def _tell(gateway: Gateway, env: str, name: str, change: str) -> None:
    data = {"secret": name, "env": env, "change": change}
    gateway.store.emit("secret", gateway.owner, "", data)


def prune(gateway: Gateway) -> None:
    """Forget former values that no log can hold any more."""
    logs = {path.stem for path in paths.logs_folder(gateway.state).iterdir()}
    gateway.store.forget_retired(logs.union(gateway.runner_ids()))


class SecretsCheck(BaseModel):
    """What a deploy would send: a payload that was uploaded, options, secrets it declares.

    `allowed_secrets` may stand in the payload, and any in the options of `allow_secret`.
    """

    payload: str = Field(pattern=r"^[0-9a-f]{64}$")
    options: dict[str, Any] = {}
    allow_secret: list[str] = []
    allowed_secrets: list[str] = []
    declared: list[str] = []
    env: str = MAIN


def check(gateway: Gateway, request: SecretsCheck) -> None:
    """Say of a payload and of names what their deploy would; no payload stays for that.

    Raises
    ------
    PayloadMissingError, StoredSecretError, OptionError, NotFoundError
    """
    refuse_in_options(gateway, request.options, request.allow_secret)
    if not paths.blob(gateway.state, request.payload).is_file():
        raise PayloadMissingError("the payload was not uploaded; deploy again")
    try:
        refuse_in_payload(gateway, request.payload, request.allowed_secrets)
        envs.check(gateway, request.env)
        gateway.secrets(request.env, request.declared)
    finally:
        blobs.discard(gateway, request.payload)


def refuse_in_context(gateway: Gateway, context: str, app_files: bool = False) -> None:
    """Look for the value of every stored secret in a build context, whose files go into an image.

    Or in `app_files`. One that is refused goes at once.

    Raises
    ------
    OptionError
        With the secret's name and the file.
    """
    known = _looked_for(gateway)
    content = paths.blob(gateway.state, context).read_bytes() if known else b""
    for name, value in known:
        at = content.find(value.encode())
        if at >= 0:
            file = _file_at(content, at)
            blobs.discard(gateway, context)
            whose, remedy = _APP_FILES if app_files else _BUILD_CONTEXT
            held = f"{file} of {whose} holds the value of the stored secret {name}"
            raise OptionError(f"{held}; {remedy}")


def _file_at(archive: bytes, offset: int) -> str:
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for entry in files:
            if entry.offset <= offset < entry.offset_data + entry.size:
                return entry.name
    return "a file"


def refuse_in_payload(gateway: Gateway, payload: str, allowed: Collection[str]) -> None:
    """Look for the value of every stored secret, but the `allowed` ones, in a payload.

    A payload that is refused goes at once: nothing on disk may hold a secret in clear. A client
    that finds that the secret may travel sends it again.

    Raises
    ------
    StoredSecretError
        With the secret's name and where in the payload it stands, so that the client, which has
        the same bytes, can say in which variable.
    """
    known = [(name, value) for name, value in _looked_for(gateway) if name not in allowed]
    content = paths.blob(gateway.state, payload).read_bytes() if known else b""
    for name, value in known:
        at = content.find(value.encode())
        if at >= 0:
            blobs.discard(gateway, payload)
            sentence = f"the payload holds the value of the stored secret {name}"
            raise StoredSecretError(sentence, name, at, at + len(value.encode()))


def refuse_in_options(gateway: Gateway, options: dict[str, Any], allowed: Collection[str]) -> None:
    """Look for the value of every stored secret in all but the `allowed` options.

    Raises
    ------
    OptionError
        With the names of option and secret.
    """
    texts = {n: _as_json(v) for n, v in options.items() if n not in allowed}
    for secret, value in _looked_for(gateway):
        for name, text in texts.items():
            if _as_json(value)[1:-1] in text:
                raise OptionError(
                    f"{name} holds the value of the stored secret {secret}, and options are stored "
                    f"as they are; leave it out, or give allow_secret={name} if it is no secret"
                )


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _looked_for(gateway: Gateway) -> list[tuple[str, str]]:
    """Return name and value of all stored secrets that do not stand somewhere by chance."""
    secrets = gateway.store.select(Secret)
    known = ((s.name, gateway.vault.decrypt(s.value, f"the secret {s.name}")) for s in secrets)
    return [(name, value) for name, value in known if len(value) >= _SHORTEST_LOOKED_FOR]
