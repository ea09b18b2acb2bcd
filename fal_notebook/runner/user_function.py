"""A process whose program is a function of the user's that starts a server."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from fal_notebook.runner import logs, unpickling
from fal_notebook.runner.envelope import packages_compared, unpack

# The variable that says how records of this runner begin.
LOG_MARK = "FAL_NOTEBOOK_LOG_MARK"


def main(payload: str, log: str, port: int, told: str) -> None:
    """Load the function and call it; end with 1 when it raises, which the file `told` says."""
    logs.redirect(log, os.environ.pop(LOG_MARK).encode())
    status: object = 0
    try:
        _call(payload, port)
    except SystemExit as ending:
        status = ending.code
        _tell(told, ending.__cause__)
    except BaseException as error:
        traceback.print_exc()
        status = 1
        _tell(told, error)
    finally:
        with contextlib.suppress(Exception):
            logs.finish(None)
    sys.exit(status)  # type: ignore[arg-type]  # whatever the function gave


def _tell(told: str, error: BaseException | None) -> None:
    if error is not None:
        text = "".join(traceback.format_exception_only(type(error), error)).strip()
        Path(told).write_text(text, errors="replace")


def _call(payload: str, port: int) -> None:
    sys.modules["__main__"] = main_module = types.ModuleType("__main__")
    content = Path(payload).read_bytes()
    manifest, pickled = unpack(content)
    with packages_compared(manifest):
        loaded: dict[str, Any] = unpickling.load(content, len(content) - len(pickled))
    for name, module in loaded["modules"].items():
        sys.modules.setdefault(name, module)
    function = loaded["function"]
    plain = inspect.unwrap(function)
    if isinstance(plain, types.FunctionType):
        names = {n: v for n, v in plain.__globals__.items() if not n.startswith("__")}
        vars(main_module).update(names)
    first = [] if loaded["setup"] is None else [_finished(loaded["setup"]())]
    offered = {"port": port} if "port" in inspect.signature(function).parameters else {}
    _finished(function(*[value for value in first if value is not None], **offered))


def _finished(result: Any) -> Any:
    """Return a result, or what an async function gives."""
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result
