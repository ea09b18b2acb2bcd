"""Where state lies and what is configured: environment ``FAL_NOTEBOOK_*``, then config.toml."""

from __future__ import annotations

import getpass
import os
import re
import sys
from pathlib import Path
from typing import Any

from platformdirs import user_config_path, user_data_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # the same library under its older name


def state_folder() -> Path:
    """Return the folder of lock, store, blobs and logs; made with mode 0700 when it is missing.

    ``FAL_NOTEBOOK_STATE`` if it is set, else the platform's user data folder.
    """
    folder = Path(os.environ.get("FAL_NOTEBOOK_STATE") or user_data_path("fal_notebook"))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder.resolve()


def config_file() -> Path:
    """Return the path of config.toml (``FAL_NOTEBOOK_CONFIG``, else the user's config folder)."""
    return Path(
        os.environ.get("FAL_NOTEBOOK_CONFIG") or user_config_path("fal_notebook") / "config.toml"
    )


def setting(name: str, default: Any) -> Any:
    """Return a setting: ``FAL_NOTEBOOK_<NAME>``, else the key of config.toml, else `default`."""
    from_environment = os.environ.get(f"FAL_NOTEBOOK_{name.upper()}")
    if from_environment is not None:
        return type(default)(from_environment)
    path = config_file()
    return tomllib.loads(path.read_text()).get(name, default) if path.is_file() else default


def owner() -> str:
    """Return the name under which apps are deployed: the setting ``owner``, else the OS user."""
    return re.sub(r"[^a-z0-9-]+", "-", str(setting("owner", getpass.getuser())).lower()).strip("-")
