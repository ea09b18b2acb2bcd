"""The OpenAPI document of a function: one endpoint ``POST /`` made from its signature."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue

from fal_notebook.runner.schema import Signature

_REF = "#/components/schemas/{model}"


class _AnySchema(GenerateJsonSchema):
    """Leaves open what JSON schema cannot say, and keeps quiet about defaults without JSON form."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}


def openapi(
    title: str, description: str | None, signature: Signature, streams: bool
) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of an app with the single endpoint ``POST /``."""
    inputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = [
        ("in", "validation", signature.input),
        ("out", "serialization", signature.output.adapter),
    ]
    schemas, definitions = TypeAdapter.json_schemas(
        inputs, ref_template=_REF, schema_generator=_AnySchema
    )
    components = definitions.get("$defs", {})
    for schema in components.values():
        if "properties" in schema:
            schema["x-fal-order-properties"] = list(schema["properties"])
    request = schemas["in", "validation"]
    media = "text/event-stream" if streams else "application/json"
    operation = {
        "summary": title,
        "operationId": title,
        "requestBody": {
            "required": _is_required(request, components, signature),
            "content": {"application/json": {"schema": request}},
        },
        "responses": {
            "200": _response("Successful response", media, schemas["out", "serialization"]),
            "422": _response("Validation error", "application/json", _ERROR),
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


def _is_required(request: dict[str, Any], components: dict[str, Any], signature: Signature) -> bool:
    """Whether an empty body is refused."""
    if signature.whole_body:
        (parameter,) = signature.parameters
        if parameter.default is not parameter.empty:
            return False
    target = components.get(request.get("$ref", "").rsplit("/", 1)[-1], request)
    return bool(target.get("required")) or ("properties" not in target and signature.whole_body)


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
