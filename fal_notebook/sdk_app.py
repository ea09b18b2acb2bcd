"""Classes of fal's own SDK, where the user has it: what they say as apps.

The SDK is looked for among what is imported already and never imported from here.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import get_type_hints

from fal_notebook.app_definition import app_name_of
from fal_notebook.container import ContainerImage
from fal_notebook.exceptions import AppDefinitionError, CaptureError, OptionError
from fal_notebook.options import Options, split_options
from fal_notebook.runner.sdk_server import SdkServer

UPLOADS = (
    "uploads by the toolkit of fal's SDK do not reach this machine from a container; use "
    "fal_notebook.toolkit for them, or, without an image, target=local"
)
_IMPORTED = re.compile(r"^\s*(import|from)\s+fal\b", re.MULTILINE)
# Where the SDK's own command serves; here each runner has a port of its own.
PORT = 8080
# What says how fal's own machines are chosen and environments are made there.
_FALS_OWN = {"_scheduler", "_scheduler_options", "resolver", "health_check_config"}
_FALS_OWN |= {"requirements_context_dir"}  # see `requirements_folder`
_OTHER_NAMES = {"app_name": "name", "app_auth": "auth"}


def is_sdk_app(value: Any) -> bool:
    """Say whether `value` is a class made from ``fal.App`` of the SDK."""
    base = getattr(sys.modules.get("fal.app"), "App", None)
    if base is None or not isinstance(value, type):
        return False
    return issubclass(value, base) and value is not base


@contextmanager
def main_file(source: str) -> Iterator[None]:
    """Give ``__main__`` a file while a cell with the SDK runs: it asks for one."""
    main = sys.modules["__main__"]
    wanted = "fal" in sys.modules or _IMPORTED.search(source)
    if hasattr(main, "__file__") or not wanted:
        yield
        return
    main.__file__ = str(Path.cwd() / "notebook.py")
    try:
        yield
    finally:
        del main.__file__


def refuse_sdk_function(value: Any) -> None:
    """Refuse what ``@fal.function`` of the SDK makes: it runs on fal's machines.

    Raises
    ------
    OptionError
    """
    made = getattr(sys.modules.get("fal.api"), "IsolatedFunction", None)
    if made is not None and isinstance(value, made):
        raise OptionError(
            "fal's own @function runs on fal's machines; leave the decorator out, or write "
            "@fal_notebook.function"
        )


def options_of(cls: Any) -> dict[str, Any]:
    """Return the options that a class gives: its keywords, its attributes, its health check.

    Raises
    ------
    OptionError
        When the class gives an option that does not exist or is wrong.
    """
    given = _options_of(cls)
    try:
        split_options(given)
    except OptionError as error:
        raise OptionError(f"class `{cls.__name__}`: {error}") from None
    return given


def _options_of(cls: Any) -> dict[str, Any]:
    told = {n: cls.host_kwargs[n] for n in cls._explicit_host_kwargs if n in cls.host_kwargs}
    values = {**told, **dict(_attributes(cls)), "exposed_port": PORT}
    values = {_OTHER_NAMES.get(n, n): v for n, v in values.items() if n not in _FALS_OWN}
    check = cls.get_health_check_config()
    return {
        **{n: _plain(v) for n, v in values.items() if n != "name"},
        **({"name": name} if (name := _given_name(cls)) else {}),
        **({"health_check": _given(vars(check))} if check is not None else {}),
    }


def requirements_folder(cls: Any) -> str | None:
    """Return where the class's local requirements begin, None where the notebook lies."""
    found = cls.host_kwargs.get("requirements_context_dir")
    return None if found is None else str(found)


def name_of(cls: Any) -> str:
    """Return the name of the app that a class is, as of a class made from our own `App`."""
    return _given_name(cls) or app_name_of(cls)


def endpoints_of(cls: type) -> dict[str, str]:
    """Return the paths of the endpoints that are no WebSockets, by method name.

    Raises
    ------
    AppDefinitionError
        When the class has no endpoint at all.
    """
    routes = {
        name: method.route_signature
        for name, method in inspect.getmembers(cls, inspect.isfunction)
        if hasattr(method, "route_signature")
    }
    if not routes:
        raise AppDefinitionError(
            f"class `{cls.__name__}` has no endpoint; put @fal.endpoint('/') on a method"
        )
    return {name: route.path for name, route in routes.items() if not route.is_websocket}


def server_of(cls: Any) -> SdkServer:
    """Return what serves a class; it is captured in the class's place.

    Raises
    ------
    CaptureError
        When the annotations of an endpoint cannot be resolved.
    """
    return SdkServer(cls, {name: hints_of(cls, name) for name in endpoints_of(cls)})


def hints_of(cls: Any, method: str) -> dict[str, Any]:
    """Return the resolved annotations of an endpoint; raises as `server_of`."""
    try:
        return get_type_hints(getattr(cls, method), include_extras=True)
    except Exception as error:  # annotations are code: they may raise anything
        raise CaptureError(f"the annotations of `{method}` cannot be resolved: {error}") from error


def _attributes(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the options among a class's attributes, those of its bases first."""
    known = Options.model_fields.keys() | _OTHER_NAMES.keys()
    base = sys.modules["fal.app"].App
    for owner in reversed(cls.__mro__):
        if issubclass(owner, base) and owner is not base:
            for name, value in vars(owner).items():
                if name in known and value is not None and not callable(value):
                    yield name, value


def _given_name(cls: Any) -> str | None:
    """Return the name that the class was given; the SDK fills in its own where there is none."""
    generated = {sys.modules["fal.app"]._to_fal_app_name(base.__name__) for base in cls.__mro__}
    return None if cls.app_name in generated else str(cls.app_name)


def _plain(value: Any) -> Any:
    """Return what the SDK's own values are as options here."""
    sdk = sys.modules["fal.sdk"]
    if isinstance(value, sdk.RetryConfig):
        return value.to_dict()
    if not isinstance(value, sys.modules["fal.container"].ContainerImage):
        return value
    fields = {n: v for n, v in vars(value).items() if n in ContainerImage.model_fields}
    return ContainerImage(**{n: v for n, v in fields.items() if v not in (None, {}, "")})


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
