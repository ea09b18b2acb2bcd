"""What a caller is answered when the user's code raises, and when the request does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from fal_notebook.app_exceptions import (
    AppException,
    FieldException,
    RequestCancelledException,
    gpu_error,
)
from fal_notebook.runner.reports import Reports
from fal_notebook.runner.secret_forms import Redact
from fal_notebook.runner.spec import TOLD

STOP = "x-fal-stop-runner"
# By these an answer speaks of its runner to the gateway, which reads no frames.
_OF_RUNNER = (STOP, "x-fal-runner-health-check")
_TOLD = {TOLD.decode(): "1"}
# pydantic's own words are about its validators.
_FROM_PYTHON = "JSON cannot give a value of this parameter's class; call the handle from Python"
Given = Callable[[], str]


def refused(reports: Reports, error: Exception, given: Given) -> Response:
    """Return the answer to a request whose function raised; what is a failure is reported."""
    response = _meant(error, reports.redact)
    gpu = gpu_error(error)
    if gpu is not None:
        reports.failed(error, given, log=response is None)
        return error_response(gpu.status_code, reports.redact(gpu.message), {STOP: "1", **_TOLD})
    if response is None:
        reports.failed(error, given)
        return failure()
    if response.status_code in range(
        500, 600
    ):  # of others HTTP has no answer: told when it is sent
        reports.failed(error, given, log=False)
        response.headers.update(_TOLD)
    return response


def failure() -> Response:
    """Return the answer to a request at which the app failed, once that has been reported."""
    headers = {"x-fal-error-type": "runner_server_error", **_TOLD}
    return error_response(500, "Internal Server Error", headers)


def is_refusal(error: Exception) -> bool:
    """Say whether the app refuses the request by it, which is no failure of the app."""
    response = _meant(error)
    return response is not None and response.status_code in range(500)


def status_of(error: Exception) -> int:
    """Return the status with which a caller over HTTP is told of the error."""
    gpu, response = gpu_error(error), _meant(error)
    if gpu is not None:
        return gpu.status_code
    return 500 if response is None else response.status_code


def _meant(error: Exception, redact: Redact = str) -> Response | None:
    """Return the answer that the error itself says, None of one that is a bug."""
    headers: dict[str, str] = {}
    detail: Any
    if isinstance(error, HTTPException):
        status, detail = error.status_code, error.detail
        headers = {name: redact(value) for name, value in (error.headers or {}).items()}
    elif isinstance(error, AppException):
        status, detail = error.status_code, error.message
    elif isinstance(error, FieldException):
        status, detail = error.status_code, error.to_pydantic_format()["detail"]
    elif isinstance(error, RequestCancelledException):
        status, detail = 499, error.message
    else:
        return None
    return error_response(status, detail, headers, redact)


def invalid(error: ValidationError, body: bytes, redact: Redact) -> Response:
    """Return 422 in FastAPI's shape: a list of errors whose `loc` begins with ``body``."""
    found = error.errors(include_url=False, include_context=True)
    return error_response(422, [_problem(item, body) for item in found], redact=redact)


def _problem(item: Any, body: bytes) -> dict[str, Any]:
    """Return one error as FastAPI words it; a body that is no JSON has no input to show."""
    if item["type"] == "needs_python_object":
        item = {**item, "msg": _FROM_PYTHON}
    if item["type"] != "json_invalid" or item["loc"]:
        return {**item, "loc": ("body", *item["loc"]), "input": item["input"] if body else None}
    place, reason = _not_json(body) or ((), item["ctx"]["error"])
    shown = {"loc": ("body", *place), "msg": "JSON decode error", "input": {}}
    return {**item, **shown, "ctx": {"error": reason}}


def _not_json(body: bytes) -> tuple[tuple[int], str] | None:
    """Return where a body ceases to be JSON and why; None of what pydantic alone refuses."""
    try:
        json.loads(body.decode())
    except json.JSONDecodeError as error:
        return (error.pos,), error.msg
    except UnicodeDecodeError as error:
        return (error.start,), error.reason
    except (RecursionError, ValueError):  # too deep, or a number of more digits than Python takes
        pass
    return None


def cancelled() -> Response:
    """Return fal's answer to who cancelled; whoever has gone does not see it."""
    kind = "client_cancelled"
    body = to_json({"detail": "the request was cancelled", "error_type": kind})
    headers = {"x-fal-error-type": kind}
    return Response(body, status_code=499, headers=headers, media_type="application/json")


def error_response(
    status: int, detail: Any, headers: dict[str, str] | None = None, redact: Redact = str
) -> Response:
    """Return an answer in FastAPI's shape of errors, without what `redact` takes out."""
    body = redact(to_json({"detail": detail}, fallback=str, inf_nan_mode="null").decode())
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def said_of_runner(result: Any) -> dict[str, str]:
    """Return the headers of a response that are for the gateway; {} of any other result."""
    given = result.headers if isinstance(result, Response) else {}
    return {name: given[name] for name in _OF_RUNNER if name in given}
