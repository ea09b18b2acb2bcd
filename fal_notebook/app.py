"""`App`: a class whose methods are the paths of one deployed app. What serves it is the runner."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any, ClassVar

from fal_notebook import app_definition
from fal_notebook.request_context import RequestContext, current_request


class App:
    """An app of several endpoints that share what `setup` made.

    Options are class keywords or class attributes::

        class Painter(fal.App, keep_alive=300):
            machine_type = "GPU-A100"

            def setup(self):
                self.model = load()

            @fal.endpoint("/generate")
            def generate(self, prompt: str) -> dict:
                return {"text": self.model(prompt)}

    A runner makes the one instance; `__init__` cannot be overridden.

    Raises
    ------
    AppDefinitionError
        When the class is defined, about its keywords, its attributes, `__init__` or a path that
        two endpoints share; names class and line.
    """

    app_name: ClassVar[str | None] = None
    app_auth: ClassVar[str | None] = None
    requirements_context_dir: ClassVar[str | None] = None
    version: ClassVar[str] = "unknown"
    _fal_keywords: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__()
        cls._fal_keywords = keywords
        if any(isinstance(getattr(base, "original", None), type) for base in _written(cls)):
            type.__setattr__(cls, "__orig_bases__", cls.__bases__)  # a handle stood there
        app_definition.check(cls, _line())

    def setup(self) -> Any:
        """Run once in each runner, before its first request; may be async."""

    def teardown(self) -> Any:
        """Run when a runner ends, after its last request; may be async."""

    def handle_exit(self) -> Any:
        """Run when a runner has been told to end and still has requests at work."""

    def provide_hints(self) -> list[str]:
        """Return what this runner is good for, such as a loaded model's name.

        Requests whose ``x-fal-runner-hint`` is one of them come here, if that can be.
        """
        raise NotImplementedError

    def health(self) -> Any:
        """Return what ``GET /health`` answers."""
        return {"version": self.version}

    @property
    def current_request(self) -> RequestContext | None:
        """The request that the present code works for."""
        return current_request()


def is_app(value: Any) -> bool:
    """Say whether `value` is a class made from `App`."""
    return isinstance(value, type) and issubclass(value, App) and value is not App


def _written(cls: type) -> tuple[Any, ...]:
    """Return the bases as they stand in the class statement, where they are not classes."""
    bases: tuple[Any, ...] = vars(cls).get("__orig_bases__", ())
    return bases


def _line() -> int:
    """Return the line of the class statement that is being executed."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "abc", "types"):
        frame = frame.f_back
    return frame.f_lineno if frame is not None else 0
