"""The handle of a server of the user's own: there is no function to call, so it sends requests."""

from __future__ import annotations

from typing import Any, NoReturn

import httpx

from fal_notebook import sync
from fal_notebook.exceptions import FalNotebookError
from fal_notebook.handle import Handle, shared_client


class ServerHandle(Handle):
    """An app in Direct Server Mode; what runs and how it scales is asked as of any handle."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: a server has no function."""
        raise self._no_function()

    async def aio(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: a server has no function."""
        raise self._no_function()

    def with_options(self, **options: Any) -> NoReturn:
        """Refuse to submit or map: a server has no function."""
        raise self._no_function()

    def request(  # type: ignore[override]  # of a server, requests are HTTP's
        self, method: str, path: str = "/", **sent: Any
    ) -> httpx.Response:
        """Send a request to the server and return its answer, whatever its status.

        Parameters
        ----------
        path : str
            Path and query.
        **sent
            What `httpx.request` takes: ``json``, ``content``, ``headers``, ``params``, ``files``…
        """
        return sync.wait(self._sent(method, path, sent))

    async def arequest(self, method: str, path: str = "/", **sent: Any) -> httpx.Response:
        """Send a request without blocking."""
        return await sync.there(self._sent(method, path, sent))

    async def _sent(self, method: str, path: str, sent: dict[str, Any]) -> httpx.Response:
        await self.ready()
        return await shared_client().ask(self.owner, self.name, method, path, **sent)

    def _no_function(self) -> FalNotebookError:
        return FalNotebookError(
            f"{self.name} is a server and not a function; send it requests with "
            f"{self.name.replace('-', '_')}.request('GET', '/…'), or use its .url"
        )

    def __reduce__(self) -> tuple[type[Handle], tuple[str, str]]:
        """Travel as owner and name."""
        return ServerHandle, (self.owner, self.name)
