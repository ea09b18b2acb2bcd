"""What an answer of the gateway, or that none came, is as an error of the tree."""

from __future__ import annotations

from typing import Any

import httpx

from fal_notebook import exceptions

_ERRORS = {
    name: kind
    for name, kind in vars(exceptions).items()
    if isinstance(kind, type) and issubclass(kind, exceptions.FalNotebookError)
}


def gone(error: httpx.HTTPError, answered: bool) -> exceptions.GatewayUnavailableError:
    """Return what is said of a gateway that could not be reached, or that ended meanwhile."""
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        reason = str(error) or type(error).__name__
        return exceptions.GatewayUnavailableError(f"the gateway cannot be reached: {reason}")
    if isinstance(error, httpx.TimeoutException):
        message = "no answer came in time; the request may be carried out all the same"
    elif answered:
        message = (
            "the gateway went away in the middle of its answer; ask again, it starts by itself"
        )
    else:
        message = (
            "the gateway went away before it answered: the request may have been carried out and "
            "was not sent again; repeat it if that does no harm, the gateway starts by itself"
        )
    return exceptions.GatewayUnavailableError(message)


def raise_for_queue(response: httpx.Response, path: str) -> None:
    """Raise what an answer of the queue tells; that a cancel comes too late is no error."""
    if not response.is_error or (path.endswith("/cancel") and response.status_code == 400):
        return
    raise_if_stopping(response)
    if response.status_code == 409:  # the submit that this one repeats is not through yet
        raise exceptions.GatewayUnavailableError(_detail(_content(response)))
    if response.status_code == 499:
        request_id = response.headers.get("x-fal-request-id")
        raise exceptions.RequestCancelledError(f"the request {request_id} was cancelled")
    if response.headers.get("x-fal-request-timeout-type") == "user":
        request_id = response.headers.get("x-fal-request-id")
        raise exceptions.StartTimeoutError(
            f"the request {request_id} did not begin in time: within its start_timeout, or the "
            "request_start_timeout of its app"
        )
    if "x-fal-request-id" in response.headers:  # what came of the request
        detail = _detail(_content(response))
        raise exceptions.GatewayError(f"{response.status_code}: {detail}")
    raise_named(response)


def raise_if_stopping(response: httpx.Response) -> None:
    """Tell the refusal of a gateway that is about to end from the 503 of an app."""
    if response.status_code == 503 and "x-fal-request-id" not in response.headers:
        raise exceptions.GatewayUnavailableError("the gateway is stopping")


def raise_if_not_found(response: httpx.Response, app: str) -> None:
    """Tell an app that is not there, of which the gateway says so, from a path that it lacks."""
    if response.status_code == 404:
        content = _content(response)
        if isinstance(content, dict) and "error_type" in content:
            raise exceptions.NotFoundError(f"there is no app {app}; run its cell again")
        raise exceptions.NotFoundError(f"{app}: {_detail(content)}")


def raise_named(response: httpx.Response) -> None:
    """Raise the error that the gateway named, else one that holds status and detail."""
    content = _content(response)
    detail = _detail(content)
    kind = _ERRORS.get(content.get("error", "")) if isinstance(content, dict) else None
    if kind is not None:
        raise kind(str(detail), **content.get("data", {}))
    if response.status_code == 401:
        raise exceptions.UnauthorizedError(str(detail))
    if response.status_code == 404:
        raise exceptions.NotFoundError(str(detail))
    of_app = "x-fal-request-id" in response.headers
    if response.status_code == 422 and isinstance(detail, list) and not of_app:
        raise exceptions.OptionError("; ".join(map(_problem, detail)))
    raise exceptions.GatewayError(f"{response.status_code}: {detail}")


def _problem(item: dict[str, Any]) -> str:
    """Return one of FastAPI's errors as a sentence, without where in the request it stood."""
    name = ".".join(map(str, item["loc"][1:]))
    return f"{name}={item.get('input')!r} is not allowed: {item['msg']}"


def named(kind: str, detail: str) -> exceptions.FalNotebookError:
    """Return the error of this name, of a stream of a newer gateway a plain one."""
    return _ERRORS.get(kind, exceptions.GatewayError)(detail)


def _content(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return {"detail": response.text}


def _detail(content: Any) -> Any:
    return content.get("detail", content) if isinstance(content, dict) else content
