"""Where state lies and what is configured: environment ``FAL_NOTEBOOK_*``, then config.toml."""

from __future__ import annotations

import getpass
import math
import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from platformdirs import user_config_path, user_data_path

from fal_notebook.exceptions import SettingError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same library under its older name

T = TypeVar("T", bool, int, str)

# The file of the state folder under whose key secrets are encrypted; made with the first one.
SECRETS_KEY = "secrets.key"

_OWNER = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")  # as the option `owner`

# Where apps can run.
TARGETS = ("local", "docker")

NAMES = (
    *("owner", "target", "port", "tls_port", "prices", "orphan_timeout", "results_kept"),
    *("max_body", "max_upload", "storage_quota", "storage_expiry", "logs_max_bytes"),
    *("docker_base", "docker_host", "docker_port", "docker_read_only"),
    *("download_allow", "webhook_allow"),
)
"""What config.toml may hold."""

_KINDS: dict[type, str] = {bool: "true or false", int: "a whole number", str: "text"}


def state_folder() -> Path:
    """Return the folder of lock, store, blobs and logs; made with mode 0700 when it is missing.

    ``FAL_NOTEBOOK_STATE`` if it is set, else the platform's user data folder.
    """
    folder = Path(os.environ.get("FAL_NOTEBOOK_STATE") or user_data_path("fal_notebook"))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SettingError(f"the state folder {folder} cannot be made: {error}") from None
    return folder.resolve()


def config_file() -> Path:
    """Return the path of config.toml (``FAL_NOTEBOOK_CONFIG``, else the user's config folder)."""
    return Path(
        os.environ.get("FAL_NOTEBOOK_CONFIG") or user_config_path("fal_notebook") / "config.toml"
    )


def setting(name: str, default: T, least: int | None = None) -> T:
    """Return a setting: ``FAL_NOTEBOOK_<NAME>``, else the key of config.toml, else `default`.

    Raises
    ------
    SettingError
        When it is not of the default's type or below `least`, or config.toml cannot be read.
    """
    variable = f"FAL_NOTEBOOK_{name.upper()}"
    value: Any = os.environ.get(variable)
    if value is None:
        value, variable = _configured().get(name, default), f"{name} in {config_file()}"
    elif isinstance(default, bool):
        value = {"true": True, "false": False}.get(value.lower(), value)
    elif isinstance(default, int):
        value = int(value) if value.removeprefix("-").isdecimal() else value
    if type(value) is not type(default):
        kind = _KINDS[type(default)]
        raise SettingError(f"{variable} is {value!r}, which is not {kind}")
    if isinstance(value, int) and least is not None and value < least:
        raise SettingError(f"{variable} is {value}, which is below {least}")
    return value


def _configured() -> dict[str, Any]:
    path = config_file()
    try:
        found = tomllib.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise SettingError(f"{path} cannot be read: {error}") from None
    for name in found.keys() - set(NAMES):
        nearest = get_close_matches(name, NAMES, n=1) or [", ".join(NAMES)]
        raise SettingError(f"{path} holds {name}, which is no setting; there is {nearest[0]}")
    return found


def prices() -> dict[str, float]:
    """Return what an hour of each machine type costs, of one GPU if it has some; {} if not said.

    Said by the table ``prices`` of config.toml, or ``FAL_NOTEBOOK_PRICES``: ``M=0.2, GPU-L40=1``.

    Raises
    ------
    SettingError
        When a price is not a number from 0 on.
    """
    text, where = os.environ.get("FAL_NOTEBOOK_PRICES"), "FAL_NOTEBOOK_PRICES"
    if text is not None:
        pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
        given: Any = {name.strip(): _number(price) for name, _, price in pairs}
    else:
        given, where = _configured().get("prices", {}), f"prices in {config_file()}"
    if not isinstance(given, dict):
        raise SettingError(f'{where} is {given!r}; write a table, such as "GPU-A100" = 1.99')
    for name, price in given.items():
        number = isinstance(price, (int, float)) and not isinstance(price, bool)
        if not (name and number and 0 <= price < math.inf):
            raise SettingError(
                f"{where}: the price of {name or 'a machine type'} is {price!r}; write what an "
                "hour costs, a number from 0 on"
            )
    return {name: float(price) for name, price in given.items()}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.strip()


def target() -> str:
    """Return where apps run whose cell does not say it: the setting ``target``.

    Raises
    ------
    SettingError
        When it names none.
    """
    found = setting("target", TARGETS[0])
    if found not in TARGETS:
        raise SettingError(f"target is {found!r}, which is none of {', '.join(TARGETS)}")
    return found


def owner() -> str:
    """Return the name under which apps are deployed: the setting ``owner``, else the OS user's.

    Raises
    ------
    SettingError
        When the setting is no name; the OS user's is made one.
    """
    name = setting("owner", "")
    if name and not _OWNER.fullmatch(name):
        raise SettingError(
            f"owner is {name!r}; write lower-case letters, digits and '-', beginning with a letter "
            "or a digit, 63 at most"
        )
    return name or re.sub(r"[^a-z0-9]+", "-", _user().lower()).strip("-")[:63] or "user"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without an entry in passwd
        return f"user-{os.getuid()}"
