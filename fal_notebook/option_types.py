"""The kinds of values that options take; which options there are is said in `option_model`."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fal_notebook.envs import ENV_RULE, check_env_name
from fal_notebook.exceptions import OptionError

NAME_RULE = (
    "letters a to z, digits, '-' and '_', beginning with a letter or a digit, 63 characters at most"
)
# The one name of a runner's own variables that a secret may have: the declared secret wins.
OWN_KEY = "FAL_KEY"
# Secrets under these names would change how a runner, or what it starts, comes up.
_AT_START = re.compile(
    r"PATH|HOME|TMPDIR|BASH_ENV|LD_(PRELOAD|LIBRARY_PATH|AUDIT)|DYLD_\w+|PYTHON[A-Z0-9]+"
    r"|HF_HOME|SSL_CERT_FILE|(METRICS_)?PORT|(CUDA|NVIDIA)_VISIBLE_DEVICES"
)
_SECRET_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# Folders of programs and the kernel, where nothing can be shown; above others it would hide those.
_SYSTEM = frozenset(("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "proc", "sbin", "sys"))
_SYSTEM_ABOVE = frozenset(("", "run", "usr", "var"))
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_LOCAL_OR_URL = re.compile(
    r"""\.{1,2}(\[.*\])?$ | \.{0,2}/ | ~/          # a path
    | [a-z][a-z0-9+.-]*://                         # a URL
    | \S+\.(whl|tar\.gz|zip)(\[.*\])?$             # an archive in the working folder
    """,
    re.VERBOSE,
)


def option(default: Any, help: str, allowed: str, *, exclude: bool = False) -> Any:
    """Declare one option: its default, its help, and what a refusal says is allowed."""
    extra: dict[str, Any] = {"allowed": allowed}
    keywords: dict[str, Any] = {"description": help, "exclude": exclude or None}
    if isinstance(default, list | dict):
        return Field(default_factory=default.copy, json_schema_extra=extra, **keywords)
    return Field(default, json_schema_extra=extra, **keywords)


def reserved(name: str) -> str:
    """Return why an environment variable's name cannot be the user's, "" where it can."""
    why = "names that begin with FAL_ are reserved: runners get their own under these"
    return why if name.startswith("FAL_") else ""


def _no_secret(name: str) -> str:
    """Return why a variable's name cannot be a secret's, "" where it can."""
    if _AT_START.fullmatch(name):
        return "it says how a runner starts or where its files are, so use another name"
    return "" if name == OWN_KEY else reserved(name)


def check_secret_name(name: str) -> None:
    """Refuse what cannot be a secret's name; what follows a ``=`` may be its value, never shown.

    Raises
    ------
    OptionError
    """
    why = _no_secret(name)
    if not _SECRET_NAME.fullmatch(name):
        why = "letters, digits and '_' only, 128 at most, and it begins with a letter or '_'"
    if why:
        raise OptionError(f"{name.partition('=')[0]!r} cannot be a secret's name: {why}")


def _not_reserved(name: str) -> str:
    if why := reserved(name):
        raise ValueError(f"{name}: {why}")
    return name


def _secret(name: str) -> str:
    if why := _no_secret(name):
        raise ValueError(f"{name}: {why}")
    return name


def app_name(name: str) -> str:
    """Return the name as it stands in URLs: lower case, ``_`` as ``-``.

    Raises
    ------
    OptionError
        When the name cannot be made into ``[a-z0-9][a-z0-9-]*`` of at most 63 characters.
    """
    slug = name.replace("_", "-").lower()
    if not _SLUG.fullmatch(slug):
        raise OptionError(f"{name!r} cannot be the name of an app: {NAME_RULE}")
    return slug


def absolute_requirement(text: str, folder: str) -> str:
    """Return a requirement that is a path as an absolute one; others as they are.

    Raises
    ------
    OptionError
        When there is nothing at the path.
    """
    if not _LOCAL_OR_URL.match(text) or "://" in text:
        return text
    path, bracket, extras = text.partition("[")
    found = os.path.normpath(os.path.join(folder, os.path.expanduser(path)))
    if not os.path.exists(found):
        raise OptionError(f"requirements names {text}, but {found} does not exist")
    return f"{found}{bracket}{extras}"


def _slug(name: str) -> str:
    try:
        return app_name(name)
    except OptionError:
        raise ValueError(NAME_RULE) from None


def _env(name: str) -> str:
    try:
        check_env_name(name)
    except OptionError:
        raise ValueError(ENV_RULE) from None
    return name


def _requirement(text: str) -> str:
    from packaging.requirements import InvalidRequirement, Requirement  # few cells have any

    text = text.strip()
    if _LOCAL_OR_URL.match(text):
        return text
    if re.fullmatch(r"[\d.]+", text):
        raise ValueError(f"{text} is a number, no requirement such as 'numpy>=2'")
    try:
        Requirement(text)
    except InvalidRequirement as error:
        # packaging draws a picture below its first line
        reason = (str(error).splitlines() or ["empty"])[0]
        told = re.sub(r"://[^/\s]*@", "://…@", text)
        raise ValueError(f"{told!r} is no requirement such as 'numpy>=2' ({reason})") from None
    return text


def _regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
    return pattern


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _mount(path: str) -> str:
    if path != "/" and not re.fullmatch(r"(/(?!\.\.?(/|$))[^/:]+)+", path):
        raise ValueError("a list of absolute paths without '..' and ':'")
    top, _, below = path[1:].partition("/")
    if top in _SYSTEM or (top in _SYSTEM_ABOVE and not below):
        raise ValueError(f"{path} is the system's; name a folder of your own such as /models")
    return path


# More of anything would only overflow where it is used: of seconds, it is 31 years.
MOST = 1_000_000_000

# Strict, because True is an int and "10" or 1.5 would become one.
Whole = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Positive = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Runners = Annotated[int, Field(strict=True, ge=0, le=1000)]
MostRunners = Annotated[int, Field(strict=True, ge=1, le=1000)]
Gpus = Annotated[int, Field(strict=True, ge=1, le=8)]
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
AppName = Annotated[str, AfterValidator(_slug)]
Owner = Annotated[str, Field(pattern=rf"^{_SLUG.pattern}$")]
EnvName = Annotated[str, AfterValidator(_env)]
_Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
EnvironmentName = Annotated[_Variable, AfterValidator(_not_reserved)]
SecretName = Annotated[_Variable, AfterValidator(_secret)]
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
PythonVersion = Annotated[str, Field(pattern=r"^3\.[0-9]{1,2}$")]
MountPath = Annotated[str, BeforeValidator(_path), AfterValidator(_mount)]
PathText = Annotated[str, BeforeValidator(_path), Field(min_length=1)]
RequirementText = Annotated[str, AfterValidator(_requirement)]
Regex = Annotated[str, AfterValidator(_regex)]
ImageReference = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][\w.-]*(:[0-9]+)?(/[\w.-]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?$",
    ),
]
Region = Literal["us-west", "us-central", "us-east", "eu-north", "eu-west"]
RetryReason = Literal["server_error", "timeout", "connection_error"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HealthCheck(_Value):
    """How the gateway asks a runner whether it is well.

    Attributes
    ----------
    path : str
        Path of the endpoint, beginning with ``/``.
    start_period_seconds : int
        Seconds after the start during which a failure does not count.
    timeout_seconds : int
        Seconds to wait for an answer.
    failure_threshold : int
        Failures in a row after which the runner is replaced.
    call_regularly : bool
        False: ask only when a response carries ``x-fal-runner-health-check``.
    method : str or None
        GET or POST; None follows from the kind of app.
    """

    path: Annotated[str, Field(pattern="^/")]
    start_period_seconds: Whole = 30
    timeout_seconds: Positive = 5
    failure_threshold: Positive = 3
    call_regularly: Flag = True
    method: Literal["GET", "POST"] | None = None


class RetryCondition(_Value):
    """How many times the queue retries after one kind of failure."""

    retries: Whole


class RetryConfig(_Value):
    """Retries of the queue per kind of failure; at least one is given."""

    server_error: RetryCondition | None = None
    timeout: RetryCondition | None = None
    connection_error: RetryCondition | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> RetryConfig:
        if not (self.server_error or self.timeout or self.connection_error):
            raise ValueError("at least one of server_error, timeout and connection_error")
        return self
