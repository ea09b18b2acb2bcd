"""Environments, in fal's sense: apps of one kind with secrets of their own, such as ``staging``.

`backends.environments` are something else: the packages that a runner imports.
"""

from __future__ import annotations

import re

from fal_notebook.exceptions import OptionError

# Where apps are that say nothing else; it cannot be deleted.
MAIN = "main"
ENV_RULE = "lower-case letters and digits with single '-' between them, 30 at most"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_LONGEST, _LONGEST_APP = 30, 63


def check_env_name(name: str) -> None:
    """Refuse what cannot be the name of an environment.

    Raises
    ------
    OptionError
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise OptionError(f"{name!r} cannot be the name of an environment: {ENV_RULE}")


def name_in(app: str, env: str) -> str:
    """Return the name that an app has in an environment: ``app--staging``, in main its own.

    Raises
    ------
    OptionError
        When it is too long for a URL.
    """
    name = app if env == MAIN else f"{app}--{env}"
    if len(name) > _LONGEST_APP:
        raise OptionError(f"{name} has more than {_LONGEST_APP} characters; shorten the app's")
    return name


def name_in_main(app: str, env: str) -> str:
    """Return the name in main of an app that is called by that, or by its name in `env`."""
    return app if env == MAIN else app.removesuffix(f"--{env}")
