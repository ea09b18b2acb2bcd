"""The control API as HTTP: each route translates to one operation, nothing more."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Body, FastAPI, Header, Path, Query, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from fal_notebook import __version__, exceptions
from fal_notebook.discovery import PROTOCOL
from fal_notebook.envs import MAIN
from fal_notebook.gateway.gateway import Gateway
from fal_notebook.gateway.logs.lines import Wanted
from fal_notebook.gateway.operations import (
    apps,
    blobs,
    cost,
    deploy,
    envs,
    errors,
    history,
    images,
    keys,
    logs,
    requests,
    revisions,
    secrets,
    starts,
)
from fal_notebook.gateway.scrape import scrape

Owner = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Days = Annotated[int, Query(ge=1, le=3660)]
Moment = Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False)]
Seconds = Annotated[float | None, Query(gt=0, le=1e11, allow_inf_nan=False)]
Age = Annotated[float, Query(ge=0, allow_inf_nan=False)]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]

# Numbers of events are integers of SQLite.
LAST_SEQ = 2**63 - 1
Seq = Annotated[int, Query(ge=0, le=LAST_SEQ)]

_STATUS: list[tuple[type[exceptions.FalNotebookError], int]] = [
    (exceptions.OptionError, 422),
    (exceptions.NotFoundError, 404),
    (exceptions.UnauthorizedError, 401),
    (exceptions.ConflictError, 409),
    (exceptions.PayloadTooLargeError, 413),
    (exceptions.DiskFullError, 507),
    (exceptions.FalNotebookError, 500),
]


class Refusal(BaseModel):
    """What is told of a request that was not done; `detail` is a sentence, or FastAPI's list."""

    detail: str | list[dict[str, Any]]


class Told(JSONResponse):
    """JSON in ASCII: what a caller sent may be no text that UTF-8 knows."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content).encode()


class EventStream(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


_REFUSED = {400, 401, 403, *(status for _, status in _STATUS if status < 500), 507}
# As OpenAPI has them, for every route.
_REFUSALS: dict[int | str, dict[str, Any]] = {s: {"model": Refusal} for s in sorted(_REFUSED)}


def _also(media_type: str) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of a route that answers otherwise than with JSON."""
    return {200: {"content": {media_type: {}}}}


def create_control(gateway: Gateway) -> FastAPI:
    """Return the control API; who may use it is decided before, in `app`."""
    api = FastAPI(
        title="fal_notebook gateway",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=_REFUSALS,
    )
    of_apps = _app_routes, _request_routes, _revision_routes, _image_routes, _cost_routes
    others = _gateway_routes, _key_routes, _storage_routes, _secret_routes, _env_routes
    for routes in (*of_apps, *others):
        api.include_router(routes(gateway))
    for kind, status in _STATUS:
        api.add_exception_handler(kind, _refusal(status))
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(UnicodeEncodeError, _no_text)
    api.add_exception_handler(ClientDisconnect, _nobody)
    api.add_exception_handler(Exception, _broken)
    return api


def _refusal(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handler(request: Request, error: Exception) -> Response:
        content = {"detail": str(error), "error": type(error).__name__, "data": vars(error)}
        return Told(content, status_code=status)

    return handler


async def _invalid(request: Request, error: Exception) -> Response:
    """Answer in FastAPI's shape; a body that is no JSON is not sent back."""
    assert isinstance(error, RequestValidationError)
    detail = [
        {key: value for key, value in item.items() if not isinstance(value, bytes)}
        for item in error.errors()
    ]
    return Told({"detail": jsonable_encoder(detail)}, status_code=422)


async def _no_text(request: Request, error: Exception) -> Response:
    """Answer to JSON with half a character (a lone surrogate), which cannot be stored."""
    return Told({"detail": "the request holds half a character, such as \\ud800"}, status_code=422)


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _broken(request: Request, error: Exception) -> Response:
    """Answer for a bug: the traceback goes to the gateway's log, never to the caller."""
    content = {
        "detail": "internal error of the gateway; its log says more",
        "error": "GatewayError",
    }
    return JSONResponse(content, status_code=500)


def _gateway_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter()

    @router.get("/api/gateway")
    async def about() -> dict[str, Any]:
        """Who this gateway is."""
        return {
            "id": gateway.id,
            "url": gateway.info.url,
            "pid": os.getpid(),
            "version": __version__,
            "protocol": PROTOCOL,
            "owner": gateway.owner,
            "state": str(gateway.state),
            "max_body": gateway.max_body,
            "gpus": gateway.gpus.total,
            "gpus_free": len(gateway.gpus.free()),
        }

    @router.post("/api/gateway/stop")
    async def stop(keep_runners: bool = False) -> dict[str, Any]:
        """End the gateway; runners end too unless they are kept for the next one."""
        gateway.request_stop(keep_runners)
        return {"stopping": True}

    @router.post("/api/gateway/tls")
    async def open_tls() -> dict[str, Any]:
        """Answer over TLS too; return the port and the certificates to trust."""
        return gateway.tls.open()

    @router.get("/metrics", responses=_also("text/plain"))
    async def metrics() -> Response:
        """Prometheus metrics under fal's names, and those of runners with a metrics_port."""
        of_runners = await scrape(list(gateway.fleets.values()))
        content = gateway.metrics.render() + of_runners
        return PlainTextResponse(content, media_type="text/plain; version=0.0.4")

    @router.get("/api/events", responses=_also(EventStream.media_type))
    async def events(
        request: Request, owner: str = "", app: str = "", since: Seq | None = None
    ) -> Response:
        """Events after `since`, or from now on, as SSE; of one app if it is named.

        Who connects again goes on after its ``Last-Event-ID``.
        """
        last = request.headers.get("last-event-id", "")
        given = min(int(last), LAST_SEQ) if last.isdecimal() and len(last) < 20 else since
        place = gateway.store.last_seq() if given is None else given
        stream = gateway.events.follow(place, owner, app)
        return EventStream(stream)

    @router.put("/api/blobs/{digest}")
    async def put_blob(digest: Digest, request: Request) -> dict[str, Any]:
        """Store a payload under its SHA-256."""
        blobs.refuse_above_limit(int(request.headers.get("content-length", 0)))
        return {"size": await blobs.store(gateway, digest, request.stream())}

    return router


class _ByName(NamedTuple):
    """What is asked of an app by its name alone; `path` is below the app's own."""

    method: str
    path: str
    operation: Callable[[Gateway, str, str], Any]
    done: str = ""  # what is answered with true when the operation returns nothing

    def endpoint(self, gateway: Gateway) -> Callable[[str, str], Awaitable[Any]]:
        """Return a coroutine function, so that the operation runs on the gateway's loop."""

        async def answer(owner: str, name: str) -> Any:
            result = self.operation(gateway, owner, name)
            return {self.done: True} if self.done else result

        answer.__name__, answer.__doc__ = self.operation.__name__, self.operation.__doc__
        return answer


_BY_NAME = (
    _ByName("GET", "", apps.status),
    _ByName("DELETE", "", apps.delete, done="deleted"),
    _ByName("DELETE", "/deploy", deploy.cancel, done="cancelled"),
    _ByName("GET", "/runners", apps.runners),
    _ByName("GET", "/timeline", apps.timeline),
    _ByName("GET", "/openapi", apps.openapi),
    _ByName("GET", "/errors", errors.errors),
    _ByName("GET", "/revisions", revisions.list_revisions),
    _ByName("GET", "/starts", starts.starts),
)


def _app_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(prefix="/api/apps")
    for route in _BY_NAME:
        path, endpoint = "/{owner}/{name}" + route.path, route.endpoint(gateway)
        router.add_api_route(path, endpoint, methods=[route.method])

    @router.get("")
    async def list_apps() -> list[dict[str, Any]]:
        """Every app with its status."""
        return apps.list_apps(gateway)

    @router.post("/{owner}")
    async def deploy_app(owner: Owner, request: deploy.DeployRequest) -> deploy.DeployReply:
        """Start a deploy, or find the app up to date."""
        return deploy.deploy(gateway, owner, request)

    @router.patch("/{owner}/{name}/scaling")
    async def scale(
        owner: str, name: str, values: Annotated[dict[str, Any], Body()]
    ) -> dict[str, Any]:
        """Change scaling options."""
        return apps.scale(gateway, owner, name, values)

    return router


def _request_routes(gateway: Gateway) -> APIRouter:
    """What became of an app's requests: errors, counts over time, logs."""
    router = APIRouter(prefix="/api/apps/{owner}/{name}")

    @router.get("/errors/{request_id:path}")
    async def error(owner: str, name: str, request_id: str) -> dict[str, Any]:
        """The errors whose sample is this request, with its input and traceback."""
        return errors.error(gateway, owner, name, request_id)

    @router.get("/history")
    async def read_history(
        owner: str,
        name: str,
        since: Moment = None,
        until: Moment = None,
        step: Seconds = None,
        endpoint: str = "",
    ) -> dict[str, Any]:
        """Requests, errors and latencies over time, or of one endpoint; times are unix seconds."""
        asked = history.Asked(since, until, step, endpoint)
        return history.history(gateway, owner, name, asked)

    @router.get("/requests")
    async def find_request(owner: str, name: str, part: str) -> dict[str, str]:
        """The id of the only request that begins or ends with `part`."""
        return await requests.find(gateway, owner, name, part)

    @router.get("/logs", responses=_also(EventStream.media_type))
    async def read_logs(
        owner: str,
        name: str,
        runner: str = "",
        request: str = "",
        level: str = "",
        tail: int = 200,
        cursor: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        follow: bool = False,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Any:
        """Log lines: a page of them, or followed as SSE; the cursor wins over `tail`."""
        place = cursor if last_event_id is None else last_event_id
        query = logs.Query(Wanted.of(runner, request, level), tail, place, limit)
        if follow:
            lines = logs.follow(gateway, owner, name, query)
            return EventStream(lines)
        return await logs.read(gateway, owner, name, query)

    return router


def _revision_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(prefix="/api/apps/{owner}/{name}")

    @router.get("/diff")
    async def diff(owner: str, name: str, revision: int | None = None) -> dict[str, Any]:
        """What changed since a revision."""
        return revisions.diff(gateway, owner, name, revision)

    @router.post("/rollback")
    async def rollback(owner: str, name: str, revision: int | None = None) -> deploy.DeployReply:
        """Start the rollout of an earlier revision."""
        return revisions.rollback(gateway, owner, name, revision)

    @router.post("/promote")
    async def promote(
        owner: str, name: str, request: revisions.PromoteRequest
    ) -> deploy.DeployReply:
        """Start the rollout of an app of one environment in another."""
        return revisions.promote(gateway, owner, name, request)

    return router


def _cost_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(prefix="/api")

    @router.get("/cost")
    async def cost_of_all(days: Days = cost.DAYS) -> dict[str, Any]:
        """What the runners of every app cost."""
        return cost.cost(gateway, gateway.owner, "", days)

    @router.get("/apps/{owner}/{name}/cost")
    async def cost_of_app(owner: str, name: str, days: Days = cost.DAYS) -> dict[str, Any]:
        """What the runners of an app cost, also of one that was deleted."""
        return cost.cost(gateway, owner, name, days)

    return router


def _env_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(prefix="/api/envs")

    @router.get("")
    async def list_envs() -> list[dict[str, Any]]:
        """Every environment with its apps."""
        return envs.list_envs(gateway)

    @router.put("/{name}")
    async def create(name: str) -> dict[str, Any]:
        """Make an environment."""
        envs.create(gateway, name)
        return {"created": True}

    @router.delete("/{name}")
    async def delete(name: str) -> dict[str, Any]:
        """Delete an environment that has no apps, with its secrets."""
        envs.delete(gateway, name)
        return {"deleted": True}

    return router


def _image_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(prefix="/api")

    @router.get("/apps/{owner}/{name}/image")
    async def image(owner: str, name: str) -> dict[str, Any]:
        """The image of an app: Dockerfiles, layers, sizes, digest."""
        return await images.about(gateway, owner, name)

    @router.post("/apps/{owner}/{name}/push", responses=_also(EventStream.media_type))
    async def push(owner: str, name: str, request: images.PushRequest) -> Response:
        """Send the image of an app to a registry; what happens comes as SSE."""
        told = await images.push(gateway, owner, name, request)
        return EventStream(told)

    @router.post("/images/prune")
    async def prune(dry_run: bool = False) -> dict[str, Any]:
        """Remove images and containers that no app needs, or say which."""
        return await images.prune(gateway, dry_run)

    return router


def _key_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(prefix="/api/keys")

    @router.get("")
    async def list_keys() -> list[dict[str, Any]]:
        """Every key without its secret."""
        return keys.list_keys(gateway)

    @router.post("")
    async def create(
        scope: str = "API", alias: str = "", user: str | None = None
    ) -> dict[str, Any]:
        """Make a key; its text is in this answer only."""
        return keys.create(gateway, scope, alias, user)

    @router.delete("/{identity}")
    async def revoke(identity: str) -> dict[str, Any]:
        """Revoke a key."""
        keys.revoke(gateway, identity)
        return {"revoked": True}

    return router


def _storage_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(prefix="/api/storage")

    @router.post("/prune")
    async def prune(
        older_than: Annotated[float, Query(ge=0, allow_inf_nan=False)],
    ) -> dict[str, int]:
        """Remove files that are older than so many seconds."""
        files, size = gateway.storage.files.remove_older(older_than)
        return {"files": files, "bytes": size}

    return router


def _secret_routes(gateway: Gateway) -> APIRouter:
    router = APIRouter(prefix="/api/secrets")

    @router.get("")
    async def list_secrets(tried: bool = False) -> list[dict[str, Any]]:
        """Every secret by name, never a value; `tried` says whether each can be read."""
        return secrets.list_secrets(gateway, tried)

    @router.post("/check")
    async def check(request: secrets.SecretsCheck) -> dict[str, Any]:
        """Refuse a payload, or names, as a deploy would."""
        secrets.check(gateway, request)
        return {"checked": True}

    @router.put("/{name}")
    async def put(
        name: str, value: Annotated[str, Body(embed=True)], env: str = MAIN
    ) -> dict[str, Any]:
        """Store a secret of an environment."""
        secrets.put(gateway, env, name, value)
        return {"set": True}

    @router.delete("/{name}")
    async def delete(name: str, env: str = MAIN) -> dict[str, Any]:
        """Remove a secret of an environment."""
        secrets.delete(gateway, env, name)
        return {"deleted": True}

    return router
