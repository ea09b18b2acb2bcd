"""A class of fal's own SDK behind a runner: the SDK serves it, to its gateway only."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# The variable that says on which address the SDK's server has to listen.
LISTEN = "FAL_NOTEBOOK_LISTEN"


@dataclass(frozen=True)
class SdkServer:
    """What a runner in Direct Server Mode calls.

    Attributes
    ----------
    app : type
        A class made from ``fal.App``.
    hints : dict
        The resolved annotations of its endpoints, by method name.
    """

    app: Any
    hints: dict[str, dict[str, Any]]

    @property
    def __name__(self) -> str:
        return str(self.app.__name__)

    def __call__(self, port: int) -> None:
        """Serve until the process is told to end."""
        os.environ["IS_ISOLATE_AGENT"] = "1"
        from fal.ref import set_current_app  # type: ignore[import-not-found]

        _listen_here_only()
        for name, hints in self.hints.items():
            getattr(self.app, name).__annotations__ = hints
        app = self.app()
        set_current_app(app)
        _serve(app, port)


def _serve(app: Any, port: int) -> None:
    """Serve; of an error of `setup` the server itself only prints the traceback, and exits."""
    raised: list[BaseException] = []
    app.setup = _noting(app.setup, raised)
    try:
        metrics_port = int(os.environ.get("METRICS_PORT", 0))
        asyncio.run(app.serve(port=port, metrics_port=metrics_port))
    except SystemExit as ending:
        raise ending from (raised[0] if raised else None)


def _noting(setup: Callable[[], Any], raised: list[BaseException]) -> Callable[[], Any]:
    @functools.wraps(setup)
    async def noting() -> Any:
        try:
            # A sync one is called on the loop, as the SDK does it.
            result = setup()
            return await result if inspect.isawaitable(result) else result
        except BaseException as error:
            raised.append(error)
            raise

    return noting


def _listen_here_only() -> None:
    """Have uvicorn listen on 127.0.0.1; the SDK says 0.0.0.0, which is right in a container."""
    import uvicorn

    host = os.environ.get(LISTEN, "127.0.0.1")

    given = uvicorn.Config.__init__

    @functools.wraps(given)
    def local(self: Any, *args: Any, **kwargs: Any) -> None:
        given(self, *args, **{**kwargs, "host": host})

    uvicorn.Config.__init__ = local  # type: ignore[method-assign]
