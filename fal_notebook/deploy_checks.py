"""What a deploy refuses or notes of a definition and its options, before anything is sent."""

from __future__ import annotations

import inspect
import json
import os
import sys
from contextlib import suppress
from typing import Any

from fal_notebook import image_request, sdk_app
from fal_notebook.app import is_app
from fal_notebook.app_definition import http_endpoints, no_options
from fal_notebook.app_handle import hidden
from fal_notebook.exceptions import OptionError
from fal_notebook.handle import Handle
from fal_notebook.notebook import folder
from fal_notebook.options import (
    CellOptions,
    Options,
    explicit,
    with_absolute_paths,
)
from fal_notebook.payload.manifest import name_of
from fal_notebook.payload.secret_scan import environment_secrets, scan, scan_known
from fal_notebook.runner.sdk_server import SdkServer
from fal_notebook.server_command import ServerCommand
from fal_notebook.server_image import ServerImage

# What is no function, and is captured in its own way.
SERVERS = (ServerCommand, ServerImage)


def ready(function: Any, options: Options, cell: CellOptions) -> tuple[Any, Options]:
    """Return what is captured and its options, checked."""
    if isinstance(function, Handle):
        function = function.original
    if sdk_app.is_sdk_app(function):
        return sdk_app.server_of(function), _checked(options, cell)
    sdk_app.refuse_sdk_function(function)
    if is_app(function) and options.exposed_port is not None:
        raise OptionError(
            "exposed_port is for servers, and an App answers by its endpoints; leave it out, or "
            "start the server from %%fal_server"
        )
    return function, _checked(options, cell)


def _checked(options: Options, cell: CellOptions) -> Options:
    """Refuse options that cannot be sent from here; return them with absolute paths."""
    _check_python(options)
    image_request.target(cell.target, options)
    variables(options)
    known = environment_secrets()
    for name, value in explicit(options).items():
        text = json.dumps(value, ensure_ascii=False).encode()
        found = [*scan(text), *scan_known(text, known)]
        if found and name not in cell.allow_secret:
            raise OptionError(
                f"{name} holds what looks like {found[0].label}, and options are stored as they "
                f"are; leave it out, or give allow_secret={name} if it is no secret"
            )
    return with_absolute_paths(options, folder())


def _check_python(options: Options) -> None:
    here = "{}.{}".format(*sys.version_info)
    if options.python_version not in (None, here):
        raise OptionError(
            f"python_version={options.python_version} is not this kernel's {here}; code captured "
            "here runs on the same minor version only: leave it out or use a kernel of that version"
        )


def variables(options: Options) -> dict[str, str]:
    """Return what `pass_env` names, refused where this kernel lacks it."""
    missing = [name for name in options.pass_env or () if name not in os.environ]
    if missing:
        raise OptionError(f"pass_env names {', '.join(missing)}, not set in this kernel")
    return {name: os.environ[name] for name in options.pass_env or ()}


def notices(function: Any, options: Options) -> list[str]:
    """Return what a deploy tells of what will not be as it may be thought."""
    stars = _star_parameters(function, options)
    missed = no_options(function) if is_app(function) else []
    images = [] if isinstance(function, SERVERS) else image_request.notices(options)
    closed = [] if is_app(function) or isinstance(function, SERVERS) else _not_open(options)
    return [*images, *missed, *stars, *closed, *hidden(_paths(function))]


def _not_open(options: Options) -> list[str]:
    """Note what `auth` says of a function in vain."""
    if options.auth == "private" or options.serve or options.exposed_port is not None:
        return []
    return [f"auth={options.auth} without serve=true: only the owner may call this app"]


def _star_parameters(function: Any, options: Options) -> list[str]:
    """Note ``*args``: fields of a JSON body have names; ``**kwargs`` takes every further one."""
    if isinstance(function, SERVERS) or options.exposed_port is not None:
        return []
    served = [function]
    if is_app(function):
        served = [getattr(function, name) for name in http_endpoints(function)]
    return [
        f"`{name_of(each)}` takes `*{star}`, which stays empty over HTTP, where arguments have "
        "names; a parameter that is a list would be filled"
        for each in served
        if (star := _star(each, options.setup_function is not None))
    ]


def _star(function: Any, has_setup: bool) -> str | None:
    """Return the name of a parameter with one star, unless it takes what setup returned."""
    with suppress(ValueError):  # written in C, and silent about its parameters
        parameters = list(inspect.signature(function).parameters.values())[has_setup:]
        return next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    return None


def _paths(function: Any) -> dict[str, str]:
    """Return the paths of a class's endpoints by method name."""
    if isinstance(function, SdkServer):
        return sdk_app.endpoints_of(function.app)
    routes = http_endpoints(function) if is_app(function) else {}
    return {name: route.path for name, route in routes.items()}
