"""The handle that `function` makes: deployed when something is first asked of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any

from fal_notebook import deploying
from fal_notebook.exceptions import OptionError
from fal_notebook.handle import Handle
from fal_notebook.options import split_options
from fal_notebook.server_handle import ServerHandle


class LazyHandle(Handle):
    """A function with its options, not deployed yet.

    Attributes
    ----------
    options : mapping
        As given to the decorator.
    """

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        parsed, cell = split_options(options)
        if cell.dry_run or cell.entry is not None:
            raise OptionError("entry and dry_run are for cells; leave them out of @function")
        who = deploying.app_identity(function, parsed, cell)
        super().__init__(who.owner, who.app, function, None, parsed.setup_function)
        self.options = dict(options)
        self._lock = threading.Lock()

    def deploy(self, **options: Any) -> Handle:
        """Deploy it now; `options` win over those of the decorator."""
        deployment = deploying.start(self.original, *split_options({**self.options, **options}))
        self._deployed = deployment.handle.deployed
        return deployment.handle

    async def ready(self) -> None:
        """Deploy it, and wait for that."""
        await asyncio.to_thread(self._deploy_once)
        await super().ready()

    def _deploy_once(self) -> None:
        with self._lock:
            if self._deployed is None:
                self.deploy()


class LazyServerHandle(LazyHandle, ServerHandle):
    """The same of a function that starts a server: it sends requests."""
