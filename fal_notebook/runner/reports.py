"""Errors of the user's code: shown in the log with their lines, and counted for the gateway."""

from __future__ import annotations

import sys
from collections.abc import Callable

from fal_notebook.runner.escapes import original
from fal_notebook.runner.tracebacks import Tracebacks

# Told of an error of a request: with its traceback, and what shows the request's input.
OnFailure = Callable[[BaseException, str, Callable[[], str]], None]


class Reports:
    """What becomes of errors.

    Attributes
    ----------
    on_failure : callable
        Told of each failed request.
    """

    def __init__(self, sources: dict[str, str]) -> None:
        self._tracebacks = Tracebacks(sources)
        self.on_failure: OnFailure = lambda error, text, given: None

    def report(self, error: BaseException) -> str:
        """Write an error's traceback to the log and return it."""
        text = self._tracebacks.format(original(error))
        sys.stderr.write(text)
        return text

    def failed(self, error: BaseException, given: Callable[[], str], log: bool = True) -> str:
        """Report an error of a request; return its traceback."""
        error = original(error)
        text = self.report(error) if log else self._tracebacks.format(error)
        self.on_failure(error, text, given)
        return text
