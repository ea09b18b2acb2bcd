"""Posts to a target: connects to the address that was checked, bounded in time and in answer."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Awaitable, Callable, Mapping

import httpcore

from fal_notebook.exceptions import WebhookDeliveryError
from fal_notebook.gateway.webhooks import targets

Make = Callable[[], Awaitable[tuple[Mapping[str, str], bytes]]]

# Seconds for all of one attempt, and in it for connecting to one of several addresses.
TIMEOUT = 15.0
CONNECT_TIMEOUT = 5.0
# Bytes of an answer that are read.
READ_AT_MOST = 64 * 1024

_FAILURES = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError)


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

    async def post(self, url: str, make: Make) -> int:
        """Return the status that the target answered; its message is made once it is connected.

        Raises
        ------
        WebhookUrlError
            When it may not be connected.
        WebhookDeliveryError
            When it cannot be reached or does not answer in time.
        """
        target = targets.parse(url)
        try:
            return await asyncio.wait_for(self._post(target, make), self._timeout)
        except asyncio.TimeoutError:
            raise WebhookDeliveryError(
                f"{target.origin} did not answer within {self._timeout:g} s"
            ) from None
        except _FAILURES as error:
            raise WebhookDeliveryError(
                f"{target.origin} cannot be reached: {error or type(error).__name__}"
            ) from error

    async def _post(self, target: targets.Target, make: Make) -> int:
        url = httpcore.URL(
            scheme=target.scheme, host=target.host, port=target.port, target=target.path
        )
        stream = await self._connect(target)
        async with httpcore.AsyncHTTP11Connection(url.origin, stream) as connection:
            headers, body = await make()
            sent = {"Host": target.authority, **headers, "Content-Length": str(len(body))}
            request = connection.stream("POST", url, headers=list(sent.items()), content=body)
            async with request as response:
                await _read(response)
                return int(response.status)

    async def _connect(self, target: targets.Target) -> httpcore.AsyncNetworkStream:
        """Resolve once, check every address, connect to one of just these."""
        checked = await targets.addresses(target, self._allow, self._resolve)
        failure: Exception = OSError("no address")
        for address in checked:
            try:
                stream = await self._network.connect_tcp(
                    address, target.port, timeout=CONNECT_TIMEOUT
                )
                return await self._secured(stream, target)
            except _FAILURES as error:
                failure = error
        raise failure

    async def _secured(
        self, stream: httpcore.AsyncNetworkStream, target: targets.Target
    ) -> httpcore.AsyncNetworkStream:
        """Put TLS upon a stream, for the name, not the address."""
        if target.scheme == "http":
            return stream
        try:
            return await stream.start_tls(self._tls, target.host, CONNECT_TIMEOUT)
        except BaseException:
            await stream.aclose()
            raise

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        context = httpcore.default_ssl_context()
        context.set_alpn_protocols(["http/1.1"])
        return context


async def _read(response: httpcore.Response) -> None:
    """Read an answer, so that its target is not cut off while it writes, but no more than that."""
    read = 0
    async for chunk in response.aiter_stream():
        read += len(chunk)
        if read >= READ_AT_MOST:
            return
