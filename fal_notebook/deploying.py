"""Deploy a function: capture it and hand it to the gateway.

`deploy_checks` says before what is wrong, `deploy_progress` follows what becomes of it.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import reprlib
import types
import warnings
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from fal_notebook import discovery, image_request, sdk_app, server_image, settings, sync
from fal_notebook.app import is_app
from fal_notebook.app_definition import (
    app_name_of,
    http_endpoints,
    options_of,
    requirements_folder,
)
from fal_notebook.app_handle import AppHandle
from fal_notebook.client import Client
from fal_notebook.deploy_checks import SERVERS, notices, ready, variables
from fal_notebook.deploy_progress import Progress, follow
from fal_notebook.envs import MAIN, name_in
from fal_notebook.exceptions import (
    ContextMissingError,
    GatewayError,
    OptionError,
    PayloadMissingError,
    StoredSecretError,
)
from fal_notebook.handle import Handle, shared_client
from fal_notebook.local_requirements import fingerprints
from fal_notebook.machines import choose, this_host
from fal_notebook.notebook import folder, identity
from fal_notebook.options import (
    CellOptions,
    Options,
    app_name,
    explicit,
    split_options,
    with_absolute_paths,
)
from fal_notebook.payload import Payload, capture, runner_needs
from fal_notebook.payload.distributions import needed_by
from fal_notebook.payload.manifest import name_of
from fal_notebook.runner.sdk_server import SdkServer
from fal_notebook.sdk_handle import SdkHandle
from fal_notebook.server_command import ServerCommand
from fal_notebook.server_handle import ServerHandle
from fal_notebook.server_image import ServerImage

# Captures once more, to look for the values of these secrets.
Find = Callable[[Mapping[str, str]], Payload]


@dataclass(frozen=True)
class Deployment:
    """A deploy that is on its way: it goes on whatever becomes of its caller.

    `accepted` ends when the gateway has taken the deploy, or raises why it has not; the handle's
    calls wait for the whole of it.
    """

    handle: Handle
    progress: Progress
    accepted: Future[dict[str, Any]]


def deploy(
    function: Any = None, *, setup_function: Callable[..., Any] | None = None, **values: Any
) -> Handle:
    """Deploy a function or an `App` class, as ``%%fal_function`` and ``%%fal_app`` do for a cell.

    Parameters
    ----------
    function : callable, optional
        What ``POST /`` calls; or a class made from `App`. Without it the app is the server in
        `image`, which listens on `exposed_port`; then `name` is needed.
    setup_function : callable, optional
        Runs once per runner before the first request.
    **values
        Any option of ``%%fal_function`` but ``entry`` and ``dry_run`` (for that there is
        `fal_notebook.capture`); ``name`` defaults to the function's own.

    Returns
    -------
    Handle
        It answers at once; a call waits for the deploy. With ``wait=True`` the deploy has ended.

    Raises
    ------
    OptionError, CaptureError, ConflictError
        Before anything is sent or changed.
    DeployError
        With ``wait=True``, when the revision did not come up.
    """
    function = server_image.of_options(values) if function is None else function
    _refuse_no_function(function)
    if setup_function is not None:
        values["setup_function"] = setup_function
    options, cell = split_options({**given_by(function), **values})
    if cell.dry_run or cell.entry is not None:
        raise OptionError("entry and dry_run are for cells; capture(function) says what is shipped")
    deployment = start(function, options, cell)
    deployment.accepted.result()
    for notice in (*deployment.progress.notices, *deployment.progress.payload.warnings):
        warnings.warn(notice, stacklevel=2)
    return deployment.handle.wait() if cell.wait else deployment.handle


def given_by(value: Any) -> dict[str, Any]:
    """Return the options that an `App` class or a decorated function brings along."""
    if is_app(value):
        return _with_requirements_of(requirements_folder(value), options_of(value))
    if sdk_app.is_sdk_app(value):
        context = sdk_app.requirements_folder(value)
        return _with_requirements_of(context, sdk_app.options_of(value))
    return dict(getattr(value, "options", {})) if isinstance(value, Handle) else {}


def _with_requirements_of(context: str | None, values: dict[str, Any]) -> dict[str, Any]:
    """Have local requirements begin at the class's `requirements_context_dir`."""
    if context is None or "requirements" not in values:
        return values
    options, _ = split_options({"requirements": values["requirements"]})
    options = with_absolute_paths(options, os.path.join(folder(), context))
    return {**values, "requirements": options.requirements}


def _refuse_no_function(value: Any) -> None:
    if is_app(value) or sdk_app.is_sdk_app(value) or isinstance(value, SERVERS):
        return
    if isinstance(value, Handle) and given_by(value):
        return
    sdk_app.refuse_sdk_function(value)
    if isinstance(value, Handle):
        raise OptionError(
            f"{value.name} is deployed already, and its options would be lost: "
            "run its cell again, or name all of them in deploy(handle.original, …)"
        )
    if not callable(value) or isinstance(value, (type, types.BuiltinFunctionType)):
        raise OptionError(
            f"deploy takes a function of this program or notebook, not {reprlib.repr(value)}; "
            "write one that calls what is to be served"
        )


def start(
    function: Any,
    options: Options,
    cell: CellOptions,
    name: str = "",
    on_change: Callable[[], None] = lambda: None,
    source: str = "",
    notebook: str = "",
) -> Deployment:
    """Capture a function and start its deploy, without waiting for anything.

    Parameters
    ----------
    name : str
        The app's name unless the options say it; by default the function's own.
    on_change : callable
        Called from a worker thread whenever there is something new to show.
    source : str
        The cell's code: whatever changes in it makes a new revision.
    notebook : str
        Whose app it is, as of `identity`; by default this notebook's or program's.
    """
    function, options = ready(function, options, cell)
    kind = _handle_of(function, options)
    if is_app(function):
        http_endpoints(function)
    who = app_identity(function, options, cell, name)
    image = image_request.of(options, folder())
    find = functools.partial(_captured, function, options, cell, source, image.key)
    payload = find({})
    noted = notices(function, options)
    progress = Progress(who.owner, who.app, payload, notices=noted, on_change=on_change)
    progress.own_image = options.image is not None
    target = image_request.target(cell.target, options)
    imported, told = imported_distributions(function, payload, options, target)
    progress.packages = imported.get("distributions", [])
    progress.notices += told
    request = {
        "name": who.name,
        "env": who.env,
        "digest": payload.digest,
        "manifest": {**payload.manifest, **imported, **image.manifest},
        "options": explicit(options),
        "allow_secret": list(cell.allow_secret),
        "variables": variables(options),
        "credentials": image.credentials,
        "notebook": notebook or identity(),
        "target": target,
        "takeover": cell.takeover,
        "reset_scale": cell.reset_scale,
    }
    client = shared_client()
    accepted = sync.submit(_accept(client, progress, request, find, image.context))
    renew = functools.partial(_renewed, client, progress, request, find, image)
    deployed = sync.submit(follow(client, progress, accepted, renew))
    original = None if isinstance(function, SERVERS) else function
    original = function.app if isinstance(function, SdkServer) else original
    handle = kind(who.owner, who.app, original, deployed, options.setup_function)
    return Deployment(handle, progress, accepted)


def dry_run(
    function: Any, options: Options, cell: CellOptions, name: str
) -> tuple[Payload, dict[str, Any], list[str]]:
    """Capture a function without deploying it; return also inherited options, and notices."""
    function, options = ready(function, options, cell)
    image = image_request.of(options, folder())
    find = functools.partial(_captured, function, options, cell, "", image.key)
    payload = find({})
    if options.secrets or (settings.state_folder() / settings.SECRETS_KEY).exists():
        sync.wait(_check_secrets(payload, find, options, cell))
    inherited = _inherited(app_identity(function, options, cell, name), options, cell)
    machine = choose(options.machine_type, options.num_gpus, this_host()).notice
    noted = [*([machine] if machine else []), *image.told, *notices(function, options)]
    return payload, inherited, noted


def imported_distributions(
    function: Any, payload: Payload, options: Options, target: str
) -> tuple[dict[str, Any], list[str]]:
    """Return what the manifest says of distributions that an image needs, and what to tell.

    Only for containers without `requirements` or `image`: processes have those of the kernel.
    """
    local = target == settings.TARGETS[0]
    sdk = [sdk_app.UPLOADS] if isinstance(function, SdkServer) and not local else []
    if local or options.requirements is not None or options.image:
        added = runner_needs.added_to(function, options)
        return {"added": added} if added else {}, sdk
    found = needed_by(payload.modules | runner_needs.modules_for(function))
    notices = [
        f"{name} is installed here from a folder and is not in the image; give requirements"
        for name in found.lacking
    ]
    return {"distributions": list(found.requirements)}, [*sdk, *notices]


def _handle_of(function: Any, options: Options) -> type[Handle]:
    if is_app(function):
        return AppHandle
    if isinstance(function, SdkServer):
        return SdkHandle
    return Handle if options.exposed_port is None else ServerHandle


class AppIdentity(NamedTuple):
    """Whose an app is, what it is called in main, and its environment."""

    owner: str
    name: str
    env: str

    @property
    def app(self) -> str:
        """What it is called in its environment, and in URLs."""
        return name_in(self.name, self.env)


def app_identity(function: Any, options: Options, cell: CellOptions, name: str = "") -> AppIdentity:
    """Return whose the app is, its name and environment."""
    if cell.owner and options.team not in (None, cell.owner):
        raise OptionError(f"owner={cell.owner} and team={options.team} name two owners; give one")
    owner = cell.owner or options.team or settings.owner()
    own_name = app_name_of(function) if is_app(function) else name or name_of(function)
    if isinstance(function, SdkServer):
        own_name = sdk_app.name_of(function.app)
    return AppIdentity(owner, app_name(options.name or own_name), cell.env or MAIN)


def _inherited(who: AppIdentity, options: Options, cell: CellOptions) -> dict[str, Any]:
    """Return what a deploy would take over from the running revision; no gateway is started."""
    reset = cell.reset_scale or options.app_scale_settings
    if reset or discovery.find(settings.state_folder()) is None:
        return {}
    try:
        running = sync.wait(shared_client().status(who.owner, who.app))
    except GatewayError:  # there is no such app yet
        return {}
    given = explicit(options)
    return {n: value for n, value in running["inheritable"].items() if n not in given}


def _captured(
    function: Callable[..., Any] | ServerCommand | ServerImage,
    options: Options,
    cell: CellOptions,
    source: str,
    image: Mapping[str, Any] = MappingProxyType({}),
    known_secrets: Mapping[str, str] = MappingProxyType({}),
) -> Payload:
    identity: dict[str, Any] = {
        "options": explicit(options),
        "variables": variables(options),
        **({"added": added} if (added := runner_needs.added_to(function, options)) else {}),
        **image,
    }
    if local := fingerprints(options.requirements):
        identity["folders"] = local
    if isinstance(function, SERVERS):
        return function.capture(identity, cell.allow_secret, known_secrets)
    return capture(
        function,
        setup_function=options.setup_function,
        local_python_modules=options.local_python_modules or (),
        identity={**identity, **({"source": source} if source else {})},
        allow_secret=cell.allow_secret,
        known_secrets=known_secrets,
    )


async def _accept(
    client: Client,
    progress: Progress,
    request: dict[str, Any],
    find: Find,
    context: bytes,
) -> dict[str, Any]:
    """Ask for the deploy until it is taken."""
    ask = functools.partial(client.deploy, progress.owner)
    reply = await _until_taken(client, ask, request, progress.payload.content, find, context)
    progress.accepted(reply)
    return reply


async def _check_secrets(payload: Payload, find: Find, options: Options, cell: CellOptions) -> None:
    """Refuse of a payload and options what a deploy would refuse of them."""
    client = shared_client()
    request = {
        "declared": list(options.secrets or ()),
        "env": cell.env or MAIN,
        "options": explicit(options),
        "allow_secret": list(cell.allow_secret),
    }
    await _until_taken(client, client.check_secrets, request, payload.content, find)


async def _until_taken(
    client: Client,
    ask: Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]],
    request: Mapping[str, Any],
    content: bytes,
    find: Find,
    context: bytes = b"",
) -> dict[str, Any]:
    """Ask until it is answered; payload and context are sent only when the gateway lacks them.

    The gateway tells where in the payload a stored secret stands; `find` captures once more, to
    say in which variable, or to find that it may travel there.
    """
    digest, allowed = hashlib.sha256(content).hexdigest(), list[str]()
    request = {**request, "payload": digest, "allowed_secrets": allowed}
    while True:
        try:
            return await ask(request)
        except (PayloadMissingError, StoredSecretError) as error:
            lacking = error
        # Outside of the handler: what is raised here is not the consequence of an error.
        if isinstance(lacking, StoredSecretError):
            find({lacking.name: content[lacking.start : lacking.end].decode()})
            allowed.append(lacking.name)
        else:
            lacks_context = isinstance(lacking, ContextMissingError)
            await client.upload(context if lacks_context else content)


async def _renewed(
    client: Client,
    progress: Progress,
    request: dict[str, Any],
    find: Find,
    image: image_request.ImageRequest,
) -> dict[str, Any] | None:
    """Deploy once more when a registry refused a password that the kernel can give anew."""
    try:
        found = await asyncio.to_thread(image.renewed, progress.refused_by)
    except OptionError as error:
        progress.ended(f"{progress.error}; asked anew, {error}")
        return None
    if not found:
        return None
    return await _accept(client, progress, {**request, "credentials": found}, find, image.context)
