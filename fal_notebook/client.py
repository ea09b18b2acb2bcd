"""The one client of the gateway, async; `sync` is its thin sync edge. It finds or starts one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import httpx

from fal_notebook import discovery, exceptions, following, settings, sync
from fal_notebook.client_errors import (
    gone,
    named,
    raise_for_queue,
    raise_if_not_found,
    raise_if_stopping,
    raise_named,
)
from fal_notebook.envs import MAIN


class _Connection(httpx.AsyncClient):
    """A connection to a gateway; inside a runner nobody knows its process."""

    info: discovery.GatewayInfo | None = None

    @property
    def has_gone(self) -> bool:
        """Whether the gateway's process has ended: another program may have its port by now."""
        return self.info is not None and not discovery.is_alive(self.info)


class Client:
    """Talks to the user's gateway, started on demand, or to the one that started this runner.

    Every method may raise `GatewayUnavailableError` when no gateway answers or can be started,
    and the error of the tree that the gateway names. Use an instance on one event loop.
    """

    def __init__(self) -> None:
        self._http: _Connection | None = None
        self._lock = asyncio.Lock()

    # --- the gateway -------------------------------------------------------------------------
    async def about(self) -> dict[str, Any]:
        """Return URL, pid, version, owner and state folder of the gateway."""
        return await self._json("GET", "/api/gateway")

    async def url(self) -> str:
        """Return the gateway's URL."""
        if _in_runner():
            return os.environ["FAL_NOTEBOOK_URL"]
        return str((await self.about())["url"])

    async def stop_gateway(self, keep_runners: bool = False) -> None:
        """Ask the gateway to end, with its runners unless they are kept for the next one."""
        await self._json("POST", "/api/gateway/stop", params={"keep_runners": keep_runners})

    async def open_tls(self) -> dict[str, Any]:
        """Let the gateway answer over TLS too; return `port` and the paths `ca` and `bundle`."""
        return await self._json("POST", "/api/gateway/tls")

    async def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        if self._http is not None:
            http, self._http = self._http, None
            await http.aclose()

    # --- apps --------------------------------------------------------------------------------
    async def upload(self, payload: bytes) -> str:
        """Store a payload and return its SHA-256."""
        digest = hashlib.sha256(payload).hexdigest()
        await self._json("PUT", f"/api/blobs/{digest}", content=payload)
        return digest

    async def deploy(self, owner: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start a deploy; `request` and answer as in `gateway.operations.deploy`."""
        return await self._json("POST", f"/api/apps/{owner}", json=request)

    async def cancel_deploy(self, owner: str, name: str) -> None:
        """Cancel the deploy that is under way."""
        await self._json("DELETE", f"/api/apps/{owner}/{name}/deploy")

    async def apps(self) -> list[dict[str, Any]]:
        """Return the status of every app."""
        return await self._json("GET", "/api/apps")

    async def status(self, owner: str, name: str) -> dict[str, Any]:
        """Return the status of an app."""
        return await self._json("GET", f"/api/apps/{owner}/{name}")

    async def runners(self, owner: str, name: str) -> list[dict[str, Any]]:
        """Return the runners of an app that have not ended."""
        return await self._json("GET", f"/api/apps/{owner}/{name}/runners")

    async def all_runners(self) -> list[dict[str, Any]]:
        """Return the runners of every app, each with its `app`."""
        found: list[dict[str, Any]] = []
        for app in await self.apps():
            with suppress(exceptions.NotFoundError):  # deleted meanwhile
                runners = await self.runners(app["owner"], app["name"])
                found += [{"app": app["name"], **runner} for runner in runners]
        return found

    async def timeline(self, owner: str, name: str) -> list[dict[str, Any]]:
        """Return samples of an app's load: at, runners, in_flight, queued."""
        return await self._json("GET", f"/api/apps/{owner}/{name}/timeline")

    async def starts(self, owner: str, name: str) -> dict[str, Any]:
        """Return an app's last cold starts and medians, see `gateway.operations.starts`."""
        return await self._json("GET", f"/api/apps/{owner}/{name}/starts")

    async def cost(self, owner: str, name: str, days: int) -> dict[str, Any]:
        """Return what an app cost in so many days, see `gateway.operations.cost.cost`."""
        return await self._json("GET", f"/api/apps/{owner}/{name}/cost", params={"days": days})

    async def all_costs(self, days: int) -> dict[str, Any]:
        """Return what every app cost in so many days."""
        return await self._json("GET", "/api/cost", params={"days": days})

    async def openapi(self, owner: str, name: str) -> dict[str, Any]:
        """Return the OpenAPI document of an app."""
        return await self._json("GET", f"/api/apps/{owner}/{name}/openapi")

    async def scale(self, owner: str, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Change scaling options of an app and return its status."""
        return await self._json("PATCH", f"/api/apps/{owner}/{name}/scaling", json=values)

    async def revisions(self, owner: str, name: str) -> list[dict[str, Any]]:
        """Return every revision of an app, the newest first."""
        return await self._json("GET", f"/api/apps/{owner}/{name}/revisions")

    async def diff(self, owner: str, name: str, revision: int | None = None) -> dict[str, Any]:
        """Return what changed since a revision, see `gateway.operations.revisions.diff`."""
        return await self._json("GET", f"/api/apps/{owner}/{name}/diff", params=_of(revision))

    async def rollback(self, owner: str, name: str, revision: int | None = None) -> dict[str, Any]:
        """Start the rollout of an earlier revision; the answer is that of a deploy."""
        path = f"/api/apps/{owner}/{name}/rollback"
        return await self._json("POST", path, params=_of(revision))

    async def promote(self, owner: str, name: str, source: str, to: str) -> dict[str, Any]:
        """Start the rollout of an app of one environment in another, as a deploy."""
        request = {"source": source, "to": to}
        return await self._json("POST", f"/api/apps/{owner}/{name}/promote", json=request)

    async def delete(self, owner: str, name: str) -> None:
        """Delete an app."""
        await self._json("DELETE", f"/api/apps/{owner}/{name}")

    async def logs(self, owner: str, name: str, **filters: Any) -> list[dict[str, Any]]:
        """Return the last log lines; filters are `runner`, `request`, `level`, `tail` (200)."""
        lines: list[dict[str, Any]] = (await self.log_page(owner, name, **filters))["lines"]
        return lines

    async def log_page(self, owner: str, name: str, **query: Any) -> dict[str, Any]:
        """Return ``lines``, the ``cursor`` behind them and whether there is ``more``.

        Filters as of `logs`; with a `cursor` ("" is the oldest line) the next `limit` lines.
        """
        return await self._json("GET", f"/api/apps/{owner}/{name}/logs", params=query)

    async def find_request(self, owner: str, name: str, part: str) -> str:
        """Return the id of the only request of an app that begins or ends with `part`."""
        path = f"/api/apps/{owner}/{name}/requests"
        return str((await self._json("GET", path, params={"part": part}))["id"])

    async def follow_logs(
        self, owner: str, name: str, **filters: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield log lines, the last ones first, then new ones until the iterator is closed.

        It goes on after a restart of the gateway, without a gap, and ends when the app is deleted.
        """
        path = f"/api/apps/{owner}/{name}/logs"

        def connect(last: str) -> AsyncGenerator[following.Event, None]:
            headers = {"last-event-id": last} if last else {}
            return following.events(self._lines(path, {**filters, "follow": True}, headers))

        async for line in following.follow(connect):
            yield line

    async def history(self, owner: str, name: str, query: Mapping[str, Any]) -> dict[str, Any]:
        """Return requests, errors and latencies of an app over time, see `Handle.stats`.

        Query: `since`, `until` (unix seconds; by default the last hour), `step` (seconds),
        `endpoint`.
        """
        return await self._json("GET", f"/api/apps/{owner}/{name}/history", params=query)

    async def errors(self, owner: str, name: str) -> list[dict[str, Any]]:
        """Return the errors of an app's requests by type and place, the last seen first."""
        return await self._json("GET", f"/api/apps/{owner}/{name}/errors")

    async def error(self, owner: str, name: str, request_id: str) -> dict[str, Any]:
        """Return the errors whose sample is this request, with its `input` and `traceback`."""
        return await self._json("GET", f"/api/apps/{owner}/{name}/errors/{quote(request_id, '')}")

    async def events(self, owner: str, name: str, since: int) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of an app after `since`, then live ones."""
        query = {"owner": owner, "app": name, "since": since}
        async for event in self._events("/api/events", query):
            yield event

    # --- keys --------------------------------------------------------------------------------
    async def keys(self) -> list[dict[str, Any]]:
        """Return every key without its secret."""
        return await self._json("GET", "/api/keys")

    async def create_key(
        self, scope: str = "API", alias: str = "", user: str | None = None
    ) -> dict[str, Any]:
        """Make a key, the owner's without `user`; its text is in ``key`` of this answer only."""
        query = {"scope": scope, "alias": alias, **({} if user is None else {"user": user})}
        return await self._json("POST", "/api/keys", params=query)

    async def revoke_key(self, identity: str) -> None:
        """Revoke a key."""
        await self._json("DELETE", f"/api/keys/{identity}")

    async def image(self, owner: str, name: str) -> dict[str, Any]:
        """Return what there is to know of an app's image, see `gateway.operations.images`."""
        return await self._json("GET", f"/api/apps/{owner}/{name}/image")

    async def push(
        self, owner: str, name: str, to: str, login: Mapping[str, Any] | None = None
    ) -> AsyncIterator[str]:
        """Send the image of an app to a registry: yield steps, then its name with the digest.

        Raises
        ------
        RegistryError
            With the registry's reason, and where credentials go.
        """
        path, request = f"/api/apps/{owner}/{name}/push", {"to": to, "login": login}
        async with self._stream("POST", path, json=request) as response:
            if response.is_error:
                await response.aread()
                raise_named(response)
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    yield _pushed(json.loads(line[6:]))

    async def prune_images(self, dry_run: bool = False) -> dict[str, Any]:
        """Remove images and containers that no app needs; return which, and their bytes."""
        return await self._json("POST", "/api/images/prune", params={"dry_run": dry_run})

    async def prune_storage(self, older_than: float) -> dict[str, int]:
        """Remove stored files older than so many seconds; return `files` and `bytes`."""
        return await self._json("POST", "/api/storage/prune", params={"older_than": older_than})

    # --- secrets -----------------------------------------------------------------------------
    async def secrets(self) -> list[dict[str, Any]]:
        """Return name, environment and time of every stored secret."""
        return await self._json("GET", "/api/secrets", params={"tried": True})

    async def set_secret(self, name: str, value: str, env: str = MAIN) -> None:
        """Store a secret of an environment."""
        await self._json("PUT", f"/api/secrets/{name}", json={"value": value}, params={"env": env})

    async def delete_secret(self, name: str, env: str = MAIN) -> None:
        """Remove a secret of an environment."""
        await self._json("DELETE", f"/api/secrets/{name}", params={"env": env})

    async def check_secrets(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Have a payload and names of secrets refused as a deploy of them would be."""
        return await self._json("POST", "/api/secrets/check", json=request)

    # --- environments ------------------------------------------------------------------------
    async def envs(self) -> list[dict[str, Any]]:
        """Return every environment with its `apps` and the number of its `secrets`."""
        return await self._json("GET", "/api/envs")

    async def create_env(self, name: str) -> None:
        """Make an environment."""
        await self._json("PUT", f"/api/envs/{quote(name, '')}")

    async def delete_env(self, name: str) -> None:
        """Delete an environment that has no apps, with its secrets."""
        await self._json("DELETE", f"/api/envs/{quote(name, '')}")

    # --- calls -------------------------------------------------------------------------------
    @asynccontextmanager
    async def run(
        self, owner: str, name: str, path: str, content: bytes, content_type: str
    ) -> AsyncIterator[httpx.Response]:
        """Send a request to an app and give its response as a stream.

        Raises
        ------
        GatewayError
            When the gateway or the app answers with an error status.
        """
        headers = {"content-type": content_type}
        target = f"/run/{owner}/{name}{path}"
        async with self._stream("POST", target, content=content, headers=headers) as response:
            if response.is_error:
                await response.aread()
                raise_if_not_found(response, f"{owner}/{name}")
                raise_named(response)
            yield response

    async def ask(
        self, owner: str, name: str, method: str, path: str, **sent: Any
    ) -> httpx.Response:
        """Send a request to a server of the user's own; its answer is returned as it is."""
        async with self._stream(method, f"/run/{owner}/{name}{path}", **sent) as response:
            await response.aread()
            return response

    # --- the queue ---------------------------------------------------------------------------
    async def submit(
        self,
        owner: str,
        name: str,
        content: bytes,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        path: str = "",
    ) -> dict[str, Any]:
        """Put a request for a path into the queue; it is on disk when this returns.

        With ``x-fal-submit-id`` among the headers a repetition does not submit it twice.
        """
        sent: dict[str, Any] = {"content": content, "headers": headers, "params": query}
        return (await self._queued("POST", f"/queue/{owner}/{name}{path}", **sent)).json()

    def open(self, method: str, path: str, **request: Any) -> AbstractAsyncContextManager[Any]:
        """Ask for any path; the answer's body, an `httpx.Response`'s, is read as it comes."""
        return self._stream(method, path, **request)

    async def request_status(self, owner: str, name: str, request_id: str) -> dict[str, Any]:
        """Return the status of a queued request, without its log lines."""
        path = _request_path(owner, name, request_id) + "/status"
        return (await self._queued("GET", path)).json()

    async def request_events(
        self, owner: str, name: str, request_id: str, logs: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the status of a queued request whenever it changes, until it is completed."""
        path = _request_path(owner, name, request_id) + "/status/stream"
        async for status in self._events(path, {"logs": int(logs)}):
            yield status

    async def result(self, owner: str, name: str, request_id: str) -> tuple[str, bytes]:
        """Return content type and body of the answer that a completed request got."""
        path = _request_path(owner, name, request_id)
        response = await self._queued("GET", path)
        return response.headers.get("content-type", ""), response.content

    async def cancel_request(self, owner: str, name: str, request_id: str) -> bool:
        """Cancel a queued request; False when it is completed already."""
        path = _request_path(owner, name, request_id) + "/cancel"
        return (await self._queued("PUT", path)).status_code == 202

    async def _queued(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Ask the queue; that a cancel comes too late is no error."""
        async with self._stream(method, path, **request) as response:
            await response.aread()
            raise_for_queue(response, path)
            return response

    # --- transport ---------------------------------------------------------------------------
    async def _json(self, method: str, path: str, **request: Any) -> Any:
        async with self._stream(method, path, **request) as response:
            await response.aread()
            if response.is_error:
                raise_named(response)
            return response.json()

    async def _events(self, path: str, query: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async for line in self._lines(path, query, {}):
            if line.startswith("data: "):
                yield json.loads(line[6:])

    async def _lines(
        self, path: str, query: dict[str, Any], headers: dict[str, str]
    ) -> AsyncIterator[str]:
        async with self._stream("GET", path, params=query, headers=headers) as response:
            if response.is_error:
                await response.aread()
                raise_if_stopping(response)
                raise_named(response)
            async for line in response.aiter_lines():
                yield line

    @asynccontextmanager
    async def _stream(self, method: str, path: str, **request: Any) -> AsyncIterator[Any]:
        response = None
        try:
            response = await self._send(method, path, **request)
            yield response
        except httpx.HTTPError as error:
            raise gone(error, answered=response is not None) from error
        finally:
            if response is not None:
                await response.aclose()

    async def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send a request; a gateway that has gone is looked for, or started, once more.

        That is safe for every request: a refused connection has carried nothing, and a gateway
        that does not know our token, because another took over its port, has done nothing. What
        only reads is asked again whatever broke it off.
        """
        http = await self._connected()
        with suppress(httpx.TransportError if method == "GET" else httpx.ConnectError):
            response = await _send(http, method, path, **request)
            if response.status_code != 401:
                return response
            if await self._connected(unlike=http) is http:
                return response
        http = await self._connected(unlike=http)
        return await _send(http, method, path, **request)

    async def _connected(self, unlike: _Connection | None = None) -> _Connection:
        """Return the connection to the gateway, a new one for one that failed or has gone."""
        async with self._lock:
            if self._http is None:
                self._http = await _found()
            elif self._http is unlike or self._http.has_gone:
                found = await _found()
                if _address(found) == _address(self._http):
                    return self._http
                await self._http.aclose()
                self._http = found
            return self._http


async def _found() -> _Connection:
    return await asyncio.get_running_loop().run_in_executor(None, _connect)


def _address(http: _Connection) -> tuple[str, str]:
    return str(http.base_url), http.headers["authorization"]


async def _send(http: _Connection, method: str, path: str, **request: Any) -> httpx.Response:
    return await http.send(http.build_request(method, path, **request), stream=True)


def _in_runner() -> bool:
    return {"FAL_RUNNER_ID", "FAL_NOTEBOOK_URL", "FAL_NOTEBOOK_KEY"} <= os.environ.keys()


def _connect() -> _Connection:
    """Inside a runner its own gateway and key count; elsewhere the user's gateway is found."""
    if _in_runner():
        url, key = os.environ["FAL_NOTEBOOK_URL"], os.environ["FAL_NOTEBOOK_KEY"]
        info, authorization = None, f"Key {key}"
    else:
        info = discovery.ensure(settings.state_folder())
        url, authorization = info.url, f"Bearer {info.token}"
    for name in ("httpx", "httpcore.connection", "httpcore.http11"):
        logging.getLogger(name).addFilter(_of_others)
    connection = _Connection(
        base_url=url,
        headers={"authorization": authorization},
        timeout=httpx.Timeout(None, connect=5.0),
        limits=httpx.Limits(max_connections=None),
        trust_env=False,
    )
    connection.info = info
    return connection


def _of_others(record: logging.LogRecord) -> bool:
    """Keep our own traffic out of what a notebook logs; the user's requests stay in."""
    return record.threadName != sync.THREAD


def _pushed(told: Mapping[str, str]) -> str:
    if "error" in told:
        raise named(told["error"], told["detail"])
    return told.get("line") or f"{told['name']}@{told['digest']}"


def _of(revision: int | None) -> dict[str, int]:
    return {} if revision is None else {"revision": revision}


def _request_path(owner: str, name: str, request_id: str) -> str:
    return f"/queue/{owner}/{name}/requests/{request_id}"
