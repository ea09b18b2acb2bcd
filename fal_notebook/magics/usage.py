"""A user's mistake in a magic is one line with a hint; a bug keeps its traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
from IPython.core.error import UsageError

from fal_notebook.exceptions import FalNotebookError


@contextmanager
def one_line(magic: str) -> Iterator[None]:
    """Turn every error that is meant for a person into IPython's one-line UsageError."""
    try:
        yield
    except FalNotebookError as error:
        raise UsageError(f"{magic}: {error}") from None
    except click.ClickException as error:
        raise UsageError(f"{magic}: {error.format_message()}") from None
