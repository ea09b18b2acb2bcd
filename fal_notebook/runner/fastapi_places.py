"""Where the arguments of an endpoint that FastAPI serves stand in a request."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args, get_origin
from urllib.parse import quote

from pydantic import BaseModel
from pydantic_core import to_json, to_jsonable_python
from starlette.background import BackgroundTasks
from starlette.datastructures import UploadFile
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from fal_notebook.annotations import is_class_of

# What FastAPI gives an endpoint by itself.
GIVEN = (Response, BackgroundTasks, UploadFile, HTTPConnection)
_KNOWN = {"path", "query", "header", "cookie", "body", "model"}


class Places:
    """Where each parameter stands: header, query, cookie, path or body."""

    def __init__(
        self, function: Callable[..., Any], hints: Mapping[str, Any], in_path: Mapping[str, Any]
    ) -> None:
        parameters = _places(function, hints, in_path)
        self._places = {name: place for name, (place, _) in parameters.items()}
        self._parameters = {name: parameter for name, (_, parameter) in parameters.items()}
        self._bodies = [n for n, place in self._places.items() if place in ("body", "model")]

    @property
    def _whole(self) -> str | None:
        """The one model that is the whole body."""
        only = self._bodies[0] if len(self._bodies) == 1 else ""
        return only if self._places.get(only) == "model" else None

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the arguments by their place; of a whole model its fields may be given.

        Raises
        ------
        TypeError
            When they do not fit the endpoint.
        """
        names = self._places.keys()
        fields = {n: v for n, v in kwargs.items() if n not in names} if self._whole else {}
        signature = inspect.Signature(list(self._parameters.values()))
        given = {n: v for n, v in kwargs.items() if n not in fields}
        arguments = signature.bind_partial(*args, **given).arguments
        whole = self._whole
        if whole is not None and whole not in arguments and (fields or self._needed(whole)):
            arguments[whole] = fields
        unknown = {self._places[name] for name in arguments} - _KNOWN
        if unknown:
            raise TypeError(f"the endpoint takes a {unknown.pop()}; send it over HTTP, to its url")
        sorted_in: dict[str, dict[str, Any]] = {"path": {}, "query": {}}
        for name, value in arguments.items():
            sorted_in.setdefault(self._places[name], {})[self._named(name)] = to_jsonable_python(
                value
            )
        return sorted_in

    def body(self, values: dict[str, dict[str, Any]]) -> bytes:
        """Return the JSON body."""
        found = {**values.get("body", {}), **values.get("model", {})}
        if self._whole is not None:
            return to_json(found[self._whole]) if self._whole in found else b""
        return to_json(found)

    def headers(self, values: dict[str, dict[str, Any]]) -> list[tuple[bytes, bytes]]:
        """Return the headers, cookies among them."""
        told = {n.replace("_", "-"): v for n, v in values.get("header", {}).items()}
        cookies = "; ".join(f"{n}={quote(str(v))}" for n, v in values.get("cookie", {}).items())
        told |= {"cookie": cookies} if cookies else {}
        return [(name.lower().encode(), str(value).encode()) for name, value in told.items()]

    def _needed(self, name: str) -> bool:
        default = self._parameters[name].default
        return default.is_required() if of_fastapi(default) else default is inspect.Parameter.empty

    def _named(self, name: str) -> str:
        parameter = self._parameters[name]
        return getattr(parameter.annotation, "alias", None) or name


def of_fastapi(mark: Any) -> bool:
    """Say whether a default or a mark of an annotation is one of FastAPI's."""
    return type(mark).__module__.partition(".")[0] == "fastapi"


def is_model_or_request(annotation: Any) -> bool:
    """Say whether a parameter is a model, or the request itself."""
    return is_class_of(annotation, BaseModel, Request)


def _places(
    function: Callable[..., Any], hints: Mapping[str, Any], in_path: Mapping[str, Any]
) -> dict[str, tuple[str, inspect.Parameter]]:
    """Return where a caller's arguments stand in a request; the rest is given by FastAPI."""
    found: dict[str, tuple[str, inspect.Parameter]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        place, mark = _place(parameter, hints, name in in_path)
        if place is not None:
            found[name] = place, parameter.replace(annotation=mark)
    return found


def _place(
    parameter: inspect.Parameter, hints: Mapping[str, Any], in_path: bool
) -> tuple[str | None, Any]:
    """Return the place of one parameter, None of what a caller does not give, and its mark."""
    annotation, mark = hints.get(parameter.name), None
    marks = [parameter.default]
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        marks += more
    mark = next((m for m in marks if of_fastapi(m)), None)
    if in_path:
        return "path", mark
    if mark is not None and type(mark).__name__ in ("Depends", "Security"):
        return None, mark
    if mark is not None and type(mark).__name__ != "Body":
        return type(mark).__name__.lower(), mark
    if is_class_of(annotation, UploadFile):
        return "file", mark
    if is_class_of(annotation, *GIVEN, Request):
        return None, mark
    whole = not mark.embed if mark is not None else is_model_or_request(annotation)
    return "model" if whole else "body", mark
