"""Results of a function: checked by its return annotation as in FastAPI, made JSON or a frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, ValidationError
from starlette.responses import Response

from fal_notebook.runner.failures import placed

_ANY_TYPE = ConfigDict(arbitrary_types_allowed=True)


@dataclass(frozen=True)
class Output:
    """A return annotation, or that of one item of a stream.

    Attributes
    ----------
    function : str
        Its name, for errors.
    annotation : object
        What it says.
    adapter : TypeAdapter
        Serialises results; its schema is the one that is shown.
    checks : bool
        Whether results are validated: not by ``Any``, ``None`` or what pydantic does not know.
    place : str
        Where the function is defined: there stands what is wrong with a result, not in pydantic.
    """

    function: str
    annotation: Any
    adapter: TypeAdapter[Any]
    checks: bool
    place: str = ""

    def validated(self, value: Any) -> Any:
        """Return a result as its annotation says; arrays count as lists, numpy's numbers as such.

        Raises
        ------
        TypeError
            When it does not fit; names function, annotation and what came.
        """
        if not self.checks or isinstance(value, Response):
            return value
        try:
            return self.adapter.validate_python(value, from_attributes=True)
        except ValidationError:
            pass
        try:
            return self.adapter.validate_python(_without_arrays(value), from_attributes=True)
        except ValidationError as error:
            raise self._at_fault(self._misfit(value, error)) from None

    def to_json(self, value: Any) -> bytes:
        """Serialise a validated result; arrays become lists, NaN becomes null.

        Raises
        ------
        TypeError
            When it does not fit its annotation, or has no JSON form.
        """
        # Not dump_json: it has no fallback before pydantic 2.11, and the user's pin wins.
        to_json = self.adapter.serializer.to_json
        try:
            return to_json(self.validated(value), by_alias=True, fallback=_plain, warnings=False)
        except PydanticSerializationError as error:
            kind = type(value).__qualname__
            raise self._at_fault(f"the result, a {kind}, has no JSON form: {error}") from None

    def to_frame(self, frame: Callable[[Any], bytes], value: Any) -> bytes:
        """Return the frame of a result that fits; the value itself travels, as ``.local`` gives it.

        Raises
        ------
        TypeError
            When it does not fit its annotation, or cannot be pickled.
        """
        self.validated(value)
        try:
            return frame(value)
        except Exception as error:  # any class may raise anything from its __reduce__
            raise self._at_fault(
                f"`{self.function}` returned {_a(value)}, which cannot be pickled ({error}); "
                "return plain data, arrays or instances of the notebook's own classes"
            ) from None

    def _at_fault(self, message: str) -> TypeError:
        return placed(TypeError(message), self.place)

    def _misfit(self, value: Any, error: ValidationError) -> str:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        return (
            f"`{self.function}` returned {_a(value)}, which is not the {_named(self.annotation)} "
            f"of its annotation: {first['msg']}{f' (at {place})' if place else ''}"
        )


def output_of(function: str, annotation: Any, place: str = "") -> Output:
    """Return the output of a function by its return annotation."""
    try:
        checks = annotation not in (Any, type(None))
        return Output(function, annotation, TypeAdapter(annotation), checks, place)
    except PydanticUserError:  # it holds a class that pydantic does not know
        return Output(function, annotation, _lenient(annotation), False, place)


def _lenient(annotation: Any) -> TypeAdapter[Any]:
    """Return an adapter that takes foreign classes too; what pydantic cannot know is any value."""
    try:
        return TypeAdapter(annotation, config=_ANY_TYPE)
    except PydanticUserError:  # a dataclass or a TypedDict takes no configuration of ours
        return TypeAdapter(Any)


def _without_arrays(value: Any) -> Any:
    """Return data with arrays as lists and numpy's numbers as Python's."""
    if isinstance(value, dict):
        return {_without_arrays(k): _without_arrays(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_arrays(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _plain(value: Any) -> Any:
    for method in ("tolist", "model_dump", "to_dict"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(
        f"a {type(value).__qualname__} has no JSON form; return plain data or a pydantic model"
    )


def _a(value: Any) -> str:
    name = type(value).__qualname__
    if value is None:
        return "None"
    return f"{'an' if name.lstrip('_')[0].lower() in 'aeiou' else 'a'} {name}"


def _named(annotation: Any) -> str:
    plain = isinstance(annotation, type) and get_origin(annotation) is None
    return annotation.__name__ if plain else str(annotation)
