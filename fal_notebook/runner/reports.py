"""Errors of the user's code: shown in the log with their lines, and counted for the gateway."""

from __future__ import annotations

import sys
from collections.abc import Callable

from fal_notebook.runner.escapes import original
from fal_notebook.runner.secret_forms import Redact
from fal_notebook.runner.tracebacks import Tracebacks

# Told of an error of a request: with its traceback, and what shows the request's input.
OnFailure = Callable[[BaseException, str, Callable[[], str]], None]


class Reports:
    """What becomes of errors.

    Attributes
    ----------
    on_failure : callable
        Told of each failed request.
    redact : callable
        Takes the values of the app's secrets out of text.
    """

    def __init__(self, sources: dict[str, str]) -> None:
        self._tracebacks = Tracebacks(sources)
        self.redact: Redact = str
        self.on_failure: OnFailure = lambda error, text, given: None

    def report(self, error: BaseException) -> str:
        """Write an error's traceback to the log and return it."""
        text = self._text_of(original(error))
        sys.stderr.write(text)
        return text

    def failed(self, error: BaseException, given: Callable[[], str], log: bool = True) -> str:
        """Report an error of a request; return its traceback."""
        error = original(error)
        text = self.report(error) if log else self._text_of(error)
        self.on_failure(error, text, given)
        return text

    def _text_of(self, error: BaseException) -> str:
        return self.redact(self._tracebacks.format(error))
