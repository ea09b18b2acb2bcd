"""Posts to a target: connects to the address that was checked, bounded in time and in answer."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Mapping
from typing import Any

import httpcore

from fal_notebook.exceptions import WebhookDeliveryError
from fal_notebook.gateway.webhooks import targets

# Seconds for all of one attempt, and for connecting to one of several addresses.
TIMEOUT = 15.0
CONNECT_TIMEOUT = 5.0
# Bytes of an answer that are read, so that the target is not cut off while it writes.
READ_AT_MOST = 64 * 1024

_FAILURES = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError)


class _GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Resolves once, checks every address, connects to one of just these."""

    def __init__(
        self,
        target: targets.Target,
        allow: str,
        resolve: targets.Resolve,
        network: httpcore.AsyncNetworkBackend,
    ) -> None:
        self._target = target
        self._allow = allow
        self._resolve = resolve
        self._network = network

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> Any:
        # TLS is put upon this stream by the pool, with the name, not the address.
        checked = await targets.addresses(self._target, self._allow, self._resolve)
        failure: Exception = OSError("no address")
        for address in checked:
            try:
                return await self._network.connect_tcp(address, port, timeout=CONNECT_TIMEOUT)
            except _FAILURES as error:
                failure = error
        raise failure


class Client:
    """A guarded HTTP client; it follows no redirect, uses no proxy and keeps no connection.

    Parameters
    ----------
    allow : str
        The setting ``webhook_allow``: a comma list of host[:port] that may be private.
    """

    def __init__(
        self,
        allow: str,
        timeout: float = TIMEOUT,
        resolve: targets.Resolve = targets.resolve,
        network: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._allow = allow
        self._timeout = timeout
        self._resolve = resolve
        self._network = network or httpcore.AnyIOBackend()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Return the status that the target answered.

        Raises
        ------
        WebhookUrlError
            When it may not be connected.
        WebhookDeliveryError
            When it cannot be reached or does not answer in time.
        """
        target = targets.parse(url)
        try:
            return await asyncio.wait_for(self._post(target, headers, body), self._timeout)
        except asyncio.TimeoutError:
            raise WebhookDeliveryError(
                f"{target.origin} did not answer within {self._timeout:g} s"
            ) from None
        except _FAILURES as error:
            raise WebhookDeliveryError(
                f"{target.origin} cannot be reached: {error or type(error).__name__}"
            ) from error

    async def _post(self, target: targets.Target, headers: Mapping[str, str], body: bytes) -> int:
        url = httpcore.URL(
            scheme=target.scheme, host=target.host, port=target.port, target=target.path
        )
        sent = {"Host": target.authority, **headers, "Content-Length": str(len(body))}
        async with (
            self._pool(target) as pool,
            pool.stream("POST", url, headers=list(sent.items()), content=body) as response,
        ):
            read = 0
            async for chunk in response.aiter_stream():
                read += len(chunk)
                if read >= READ_AT_MOST:
                    break
            return int(response.status)

    def _pool(self, target: targets.Target) -> httpcore.AsyncConnectionPool:
        guard = _GuardedNetwork(target, self._allow, self._resolve, self._network)
        context = self._tls if target.scheme == "https" else None
        return httpcore.AsyncConnectionPool(ssl_context=context, network_backend=guard)

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpcore.default_ssl_context()
