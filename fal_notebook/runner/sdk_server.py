"""A class of fal's own SDK behind a runner: the SDK serves it, on this machine only."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any


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

    def __call__(self, port: int) -> Any:
        """Return what is to be awaited: it serves until the process is told to end."""
        os.environ["IS_ISOLATE_AGENT"] = "1"
        from fal.ref import set_current_app  # type: ignore[import-not-found]

        _listen_here_only()
        for name, hints in self.hints.items():
            getattr(self.app, name).__annotations__ = hints
        app = self.app()
        set_current_app(app)
        return app.serve(port=port, metrics_port=0)


def _listen_here_only() -> None:
    """Have uvicorn listen on 127.0.0.1; the SDK says 0.0.0.0, which is right in a container."""
    import uvicorn

    given = uvicorn.Config.__init__

    @functools.wraps(given)
    def local(self: Any, *args: Any, **kwargs: Any) -> None:
        given(self, *args, **{**kwargs, "host": "127.0.0.1"})

    uvicorn.Config.__init__ = local  # type: ignore[method-assign]
