"""`FalBaseModel`: a model that says in which order its fields are shown, and which are not."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.fields import FieldInfo

from fal_notebook.toolkit.audio import AudioField as AudioField
from fal_notebook.toolkit.fields import Field as Field
from fal_notebook.toolkit.file import FileField as FileField
from fal_notebook.toolkit.image import ImageField as ImageField
from fal_notebook.toolkit.video import VideoField as VideoField

T = TypeVar("T")
_HIDDEN = "_fal_hidden"


def Hidden(field: T) -> T:  # noqa: N802  fal's name
    """Leave a field out of forms: ``Hidden(Field(default=False))``.

    Raises
    ------
    TypeError, ValueError
        When it is no ``Field``, or has no default.
    """
    if not isinstance(field, FieldInfo):
        raise TypeError(
            f"Hidden() requires a Field instance, got {type(field).__name__}. "
            "Usage: Hidden(Field(default=...))"
        )
    if field.is_required():
        raise ValueError("Hidden fields must have a default or default_factory.")
    field.metadata = [*field.metadata, _HIDDEN]
    return field


class FalBaseModel(BaseModel):
    """A model for inputs and outputs.

    `FIELD_ORDERS` names the fields that come first; `Hidden` fields are in no form.
    """

    FIELD_ORDERS: ClassVar[list[str]] = []

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: Any, handler: GetJsonSchemaHandler, /
    ) -> dict[str, Any]:
        schema = handler(core_schema)
        resolved = handler.resolve_ref_schema(schema)
        properties = resolved.get("properties", {})
        for name, field in cls.model_fields.items():
            shown = properties.get(field.alias or name)
            if shown is not None and _HIDDEN in field.metadata:
                shown["ui"] = {**shown.get("ui", {}), "hidden": True}
        first = [name for name in cls.FIELD_ORDERS if name in properties]
        if first:
            resolved["properties"] = {name: properties[name] for name in [*first, *properties]}
        return schema
