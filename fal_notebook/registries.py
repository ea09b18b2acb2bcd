"""Registries of images: whose a reference is, credentials as users write them, what a refusal says.

A password is a text, ``$NAME``, a command (a list of texts) or a callable. The kernel puts in what
its environment has of ``$NAME`` and calls the callable at each deploy; the gateway knows stored
secrets and runs the command whenever a registry is used. So what may expire is fresh.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fal_notebook.exceptions import OptionError

# The host of references that name none, and the key under which its credentials are written.
HUB, HUB_KEY = "docker.io", "https://index.docker.io/v1/"

_HUB_NAMES = frozenset({HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_REFERENCE = re.compile(
    r"(?:(?P<host>localhost(?::\d+)?|[\w-]+(?:\.[\w-]+)*(?::\d+)|[\w-]+(?:\.[\w-]+)+|"
    r"\[[0-9a-fA-F:]+\](?::\d+)?)/)?"
    r"(?P<path>[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?",
    re.ASCII,
)
_NAMED = re.compile(r"\$(?:\{(\w+)\}|(\w+))")

Password = str | list[str]


class Entry(Protocol):
    """Credentials for one registry as the user gave them."""

    @property
    def username(self) -> str: ...

    @property
    def password(self) -> Any: ...


@dataclass(frozen=True)
class Reference:
    """A reference to an image, cut into its parts; tag and digest may be empty."""

    host: str
    path: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def of(cls, text: str) -> Reference:
        """Cut a reference such as ``registry.example.com/team/image:1.0``.

        Raises
        ------
        OptionError
            When it is none.
        """
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise OptionError(
                f"{text!r} is no reference to an image: write [HOST[:PORT]/]NAME[:TAG], the name "
                "in lower case and without a scheme"
            )
        host, path = host_of_key(match["host"] or HUB), match["path"]
        path = f"library/{path}" if host == HUB and "/" not in path else path
        return cls(host, path, match["tag"] or "", match["digest"] or "")

    @property
    def repository(self) -> str:
        """Host and path; equal ones are the same repository."""
        return f"{self.host}/{self.path}"

    def same_repository(self, text: str) -> bool:
        """Say whether another reference is to the same repository."""
        return Reference.of(text).repository == self.repository


def host_of_key(key: str) -> str:
    """Return the host for which a user's key stands: a host, or a URL such as Docker Hub's."""
    host = re.sub(r"^https?://", "", key.strip()).split("/", 1)[0]
    return HUB if host in _HUB_NAMES else host


def engine_key(host: str) -> str:
    """Return the key under which Docker's own files and headers have a host's credentials."""
    return HUB_KEY if host == HUB else host


def hosts_of(names: Iterable[str]) -> set[str]:
    """Return the registries of images that a Dockerfile names; what is no name has none."""
    matches = (_REFERENCE.fullmatch(name) for name in names if name != "scratch")
    return {host_of_key(match["host"] or HUB) for match in matches if match is not None}


# --- what a client sends ---------------------------------------------------------------------
def to_send(
    registries: Mapping[str, Entry], environ: Mapping[str, str]
) -> dict[str, dict[str, Password]]:
    """Return credentials by host as the gateway keeps them.

    A ``$NAME`` that the environment has is its value, another one stays and is a stored secret.
    A callable is called.

    Raises
    ------
    OptionError
        When a callable fails or gives no text.
    """
    return {
        host_of_key(key): {
            "username": from_environment(entry.username, environ),
            "password": _password(key, _plain(entry.password), environ),
        }
        for key, entry in registries.items()
    }


def calls(registries: Mapping[str, Entry]) -> set[str]:
    """Return the hosts whose password a callable gives: only the kernel can ask it anew."""
    return {host_of_key(key) for key, entry in registries.items() if callable(entry.password)}


def _plain(password: Any) -> Any:
    secret = getattr(password, "get_secret_value", None)
    return password if secret is None else secret()


def _password(key: str, password: Any, environ: Mapping[str, str]) -> Password:
    if callable(password):
        return literal(_called(key, password))
    return password if isinstance(password, list) else from_environment(password, environ)


def _called(key: str, password: Callable[[], object]) -> str:
    try:
        value = password()
    except Exception as error:
        raise OptionError(
            f"the function that gives the password of {key} failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, str) or not value.strip():
        raise OptionError(
            f"the function that gives the password of {key} returned no text but "
            f"{type(value).__name__}; it returns the password or token"
        )
    return value.strip()


def from_environment(text: str, environ: Mapping[str, str]) -> str:
    """Return what the environment has under ``$NAME``; another text as it is."""
    name = named(text)
    return literal(environ[name]) if name in environ else text


def named(text: str) -> str:
    """Return NAME of ``$NAME`` or ``${NAME}``, empty for every other text."""
    match = _NAMED.fullmatch(text)
    return (match[1] or match[2]) if match else ""


def literal(text: str) -> str:
    """Return what stands for a text itself, also for one that begins with ``$``."""
    return f"${text}" if text.startswith("$") else text


def resolved(text: str, secret: Callable[[str], str]) -> str:
    """Return the stored secret for ``$NAME``, the text itself for every other one."""
    name = named(text)
    return secret(name) if name else text.removeprefix("$") if text[:2] == "$$" else text


# --- what a refusal says -----------------------------------------------------------------------
def refused(said: str) -> bool:
    """Say whether what an engine tells of a registry means that it wants other credentials."""
    words = ("unauthorized", "no basic auth", "denied", "authentication required", "forbidden")
    return any(word in said.lower() for word in words)


def missing(said: str) -> bool:
    """Say whether what an engine tells of a registry means that it does not have the image."""
    return any(word in said.lower() for word in ("not found", "manifest unknown", "name unknown"))


def explain(doing: str, reference: str, said: str, login: tuple[str, str] | None) -> str:
    """Return one sentence about a pull or push that failed.

    Parameters
    ----------
    doing : str
        ``pulled`` or ``pushed``.
    said : str
        What the engine told.
    login : tuple of str, optional
        User name and where the credentials came from; None when there were none.
    """
    host = Reference.of(reference).host
    if refused(said) and login is None:
        private = (
            "has no such image, or it is private" if "does not exist" in said else "is private"
        )
        return (
            f"{reference} cannot be {doing}: {host} {private} and there are no credentials for "
            f"it; {_where(host, doing)}"
        )
    if refused(said) and login is not None:
        username, source = login
        return (
            f"{reference} cannot be {doing}: {host} refused the user {username} and its password, "
            f"which came from {source}; {_hint(host, username)}"
        )
    if missing(said):
        return (
            f"{reference} cannot be {doing}: {host} has no such repository or tag; check the name"
        )
    return f"{reference} cannot be {doing}: {said}"


def _where(host: str, doing: str) -> str:
    entry = f"{{{engine_key(host)!r}: {{'username': …, 'password': '$NAME'}}}}"
    here = "add --username USER --password-from NAME, or " if doing == "pushed" else ""
    return f"{here}give the image registries={entry}, or run `docker login {host}`"


def _hint(host: str, username: str) -> str:
    if username == "AWS" or ".dkr.ecr." in host:
        return (
            "the user is AWS and its token is valid for 12 hours: password=['aws', 'ecr', "
            "'get-login-password'] asks for a new one at each use"
        )
    if username.startswith("_json_key") or host.endswith(".pkg.dev"):
        return (
            "the user _json_key_base64 has the key file of a service account for its password, "
            "as one line of base64 (`base64 -w0 key.json`)"
        )
    return "check both, or whether this user may use that repository"
