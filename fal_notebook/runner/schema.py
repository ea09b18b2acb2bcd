"""Input and output of a function as pydantic sees them, and the OpenAPI document made from both."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import Any, get_args, get_origin

import pydantic.dataclasses
from pydantic import BaseModel, ConfigDict, TypeAdapter

_STREAMS = (Generator, Iterator, AsyncGenerator, AsyncIterator)
_REF = "#/components/schemas/{model}"


@dataclasses.dataclass(frozen=True)
class Signature:
    """How JSON becomes arguments and results become JSON.

    Attributes
    ----------
    input : TypeAdapter
        Validates a request body.
    output : TypeAdapter
        Serialises a result, or one item of a stream.
    model_parameter : str or None
        Name of the one parameter that is a pydantic model and takes the whole body.
    parameters : tuple of str
        Names of plain parameters, the fields of the body.
    """

    input: TypeAdapter[Any]
    output: TypeAdapter[Any]
    model_parameter: str | None
    parameters: tuple[str, ...]

    def arguments(self, body: bytes) -> dict[str, Any]:
        """Validate a JSON body; an empty one counts as an empty object.

        Raises
        ------
        pydantic.ValidationError
            When the body is malformed or does not fit.
        """
        value = self.input.validate_json(body or b"{}")
        if self.model_parameter:
            return {self.model_parameter: value}
        return {name: getattr(value, name) for name in self.parameters}


def read_signature(
    function: Callable[..., Any], hints: dict[str, Any], skip_first: bool
) -> Signature:
    """Derive the signature of `function`.

    Parameters
    ----------
    hints : dict
        Its resolved type hints.
    skip_first : bool
        Leave the first parameter out: it is the result of setup_function.
    """
    parameters = [
        p
        for p in list(inspect.signature(function).parameters.values())[int(skip_first) :]
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    output: TypeAdapter[Any] = TypeAdapter(_item_type(hints.get("return", Any)))
    types = {p.name: hints.get(p.name, Any) for p in parameters}
    if len(parameters) == 1 and _is_model(types[parameters[0].name]):
        name = parameters[0].name
        return Signature(TypeAdapter(types[name]), output, name, ())
    return Signature(TypeAdapter(_body(function, parameters, types)), output, None, tuple(types))


def _body(
    function: Callable[..., Any], parameters: list[inspect.Parameter], types: dict[str, Any]
) -> type:
    """Make the class of the body: a dataclass, for a model would forbid names such as ``copy``."""
    fields: list[Any] = [
        (p.name, types[p.name])
        if p.default is p.empty
        else (p.name, types[p.name], _default(p.default))
        for p in parameters
    ]
    plain = dataclasses.make_dataclass("Input", fields, kw_only=True)
    config = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, title=f"{_title(function)}Input"
    )
    return pydantic.dataclasses.dataclass(plain, config=config)


def _default(value: Any) -> Any:
    """Return the dataclass default; mutable ones are made anew by a factory."""
    if isinstance(value, (list, dict, set)):
        return dataclasses.field(default_factory=value.copy)
    return value


def _title(function: Callable[..., Any]) -> str:
    return "".join(part.capitalize() for part in function.__name__.split("_"))


def _is_model(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


def _item_type(annotation: Any) -> Any:
    """Return the type of one item when a function is annotated as a generator."""
    if get_origin(annotation) in _STREAMS and get_args(annotation):
        return get_args(annotation)[0]
    return annotation


def openapi(
    title: str, description: str | None, signature: Signature, streams: bool
) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of an app with the single endpoint ``POST /``."""
    schemas, definitions = TypeAdapter.json_schemas(
        [("in", "validation", signature.input), ("out", "serialization", signature.output)],
        ref_template=_REF,
    )
    components = dict(definitions.get("$defs", {}))
    request = _named(schemas["in", "validation"], components)
    response = schemas["out", "serialization"]
    media = "text/event-stream" if streams else "application/json"
    operation = {
        "summary": title,
        "operationId": title,
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {
            "200": {"description": "Successful response", "content": {media: {"schema": response}}},
            "422": {"description": "Validation error"},
        },
    }
    if description:
        operation["description"] = description
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1"},
        "paths": {"/": {"post": operation}},
        "components": {"schemas": components},
        "x-fal-order-paths": ["/"],
    }


def _named(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """Move an inline object schema under components, with the order of its fields."""
    if "$ref" not in schema:
        name = schema.get("title", "Input")
        components[name] = schema
        schema = {"$ref": _REF.format(model=name)}
    target = components[schema["$ref"].rsplit("/", 1)[1]]
    if "properties" in target:
        target["x-fal-order-properties"] = list(target["properties"])
    return schema
