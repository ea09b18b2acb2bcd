"""The OpenAPI document of an app, made from the signatures of its routes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue

from fal_notebook.runner.route import Route
from fal_notebook.runner.schema import Signature
from fal_notebook.runner.sockets import SocketRoute

_REF = "#/components/schemas/{model}"


class _AnySchema(GenerateJsonSchema):
    """Leaves open what JSON schema cannot say, and keeps quiet about defaults without JSON form."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}


def openapi(
    title: str,
    description: str | None,
    routes: Mapping[str, Any],
    sockets: Mapping[str, SocketRoute] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of an app.

    Parameters
    ----------
    routes : mapping
        By path, in the order in which they are shown; `Route` or `FastApiRoute`.
    sockets : mapping
        The paths that are WebSockets, shown after these.
    """
    own = {path: route for path, route in routes.items() if isinstance(route, Route)}
    schemas, components = _schemas(own)
    for schema in components.values():
        if "properties" in schema:
            schema["x-fal-order-properties"] = list(schema["properties"])
    paths: dict[str, Any] = {}
    for path, route in routes.items():
        if path in own:
            paths[path] = {"post": _operation(path, route, schemas, components)}
        else:
            _merge(route.openapi(), paths, components)
    if description and list(paths) == ["/"]:
        paths["/"]["post"]["description"] = description
    paths |= {path: socket.openapi() for path, socket in sockets.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": "1"},
        "paths": paths,
        "components": {"schemas": components},
        "x-fal-order-paths": list(paths),
    }


def _schemas(routes: Mapping[str, Route]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Return the schemas of all inputs and outputs, and the models that they share."""
    inputs: list[tuple[tuple[str, str], JsonSchemaMode, TypeAdapter[Any]]] = []
    for path, route in routes.items():
        inputs.append(((path, "in"), "validation", route.signature.input))
        inputs.append(((path, "out"), "serialization", route.signature.output.adapter))
    schemas, definitions = TypeAdapter.json_schemas(
        inputs, ref_template=_REF, schema_generator=_AnySchema
    )
    return schemas, definitions.get("$defs", {})


def _operation(
    path: str, route: Route, schemas: dict[Any, Any], components: dict[str, Any]
) -> dict[str, Any]:
    media = "text/event-stream" if route.streams else "application/json"
    request = schemas[(path, "in"), "validation"]
    description = {"description": route.doc} if route.doc else {}
    return {
        "summary": route.name,
        "operationId": route.name,
        **description,
        "requestBody": {
            "required": _is_required(request, components, route.signature),
            "content": {"application/json": {"schema": request}},
        },
        "responses": {
            "200": _response("Successful response", media, schemas[(path, "out"), "serialization"]),
            "422": _response("Validation error", "application/json", _ERROR),
        },
    }


def _merge(document: dict[str, Any], paths: dict[str, Any], components: dict[str, Any]) -> None:
    """Add the paths that FastAPI serves; a model that both know is the same one."""
    paths |= document["paths"]
    for name, schema in document.get("components", {}).get("schemas", {}).items():
        components.setdefault(name, schema)


def _is_required(request: dict[str, Any], components: dict[str, Any], signature: Signature) -> bool:
    """Whether an empty body is refused."""
    if signature.whole_body:
        (parameter,) = signature.parameters
        return bool(parameter.default is parameter.empty)
    target = components.get(request.get("$ref", "").rsplit("/", 1)[-1], request)
    return bool(target.get("required"))


def _response(description: str, media: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {media: {"schema": schema}}}


_ERROR = {
    "type": "object",
    "title": "HTTPValidationError",
    "properties": {
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "loc": {"type": "array", "items": {"type": ["string", "integer"]}},
                    "msg": {"type": "string"},
                    "type": {"type": "string"},
                },
                "required": ["loc", "msg", "type"],
            },
        }
    },
}
