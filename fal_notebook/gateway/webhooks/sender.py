"""One attempt to deliver a webhook: connects, makes the body, signs it, posts it."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fal_notebook.exceptions import WebhookDeliveryError
from fal_notebook.gateway.webhooks.signing import Signer
from fal_notebook.gateway.webhooks.table import Delivery
from fal_notebook.gateway.webhooks.targets import parse

if TYPE_CHECKING:
    from fal_notebook.gateway.webhooks.client import Client

MakeBody = Callable[[], Awaitable[bytes]]


class Sender:
    """Makes one attempt.

    Parameters
    ----------
    allow : str
        The setting ``webhook_allow`` (see `targets.check`).
    find : callable
        Returns what makes the body (see `message`) for a request id, None when its result is gone.
    trace : callable
        Returns the headers that name the trace of a request id.
    """

    def __init__(
        self,
        allow: str,
        signer: Signer,
        find: Callable[[str], MakeBody | None],
        trace: Callable[[str], dict[str, str]] = lambda request_id: {},
    ) -> None:
        self._allow = allow
        self._signer = signer
        self._find = find
        self._trace = trace

    async def __call__(self, delivery: Delivery) -> None:
        """Return when the target took it.

        Raises
        ------
        FalNotebookError
            When it did not; the sentence says why.
        """
        make_body = self._find(delivery.request_id)
        if make_body is None:
            return
        make = functools.partial(self._message, delivery, make_body)
        status = await self._client.post(delivery.url, make)
        if not 200 <= status < 300:
            raise WebhookDeliveryError(f"{parse(delivery.url).origin} answered {status}")

    async def _message(
        self, delivery: Delivery, make_body: MakeBody
    ) -> tuple[dict[str, str], bytes]:
        body = await make_body()
        signed = self._signer.headers(delivery.request_id, delivery.user_id, body, time.time())
        headers = {"Content-Type": "application/json", "User-Agent": "fal-notebook"}
        return {**headers, **self._trace(delivery.request_id), **signed}, body

    @functools.cached_property
    def _client(self) -> Client:
        # Imported when the first webhook comes: a gateway without one does not pay for it.
        from fal_notebook.gateway.webhooks.client import Client

        return Client(self._allow)
