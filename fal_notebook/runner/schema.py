"""Input of a function as pydantic sees it, JSON to arguments; what it returns is for `results`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, ValidationError, to_json
from starlette.requests import Request

from fal_notebook.annotations import is_class_of, without_none
from fal_notebook.runner.failures import defined_at
from fal_notebook.runner.results import Output, output_of
from fal_notebook.runner.unpacked import UNGIVEN, Key, unpacked

_NAMELESS = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.VAR_KEYWORD,
)
_STREAMS = (Generator, Iterator, Iterable, AsyncGenerator, AsyncIterator, AsyncIterable)


@dataclasses.dataclass(frozen=True)
class Signature:
    """How JSON becomes arguments, and what a result has to be.

    Attributes
    ----------
    input : TypeAdapter
        Validates a request body.
    output : Output
        Validates and serialises a result, or one item of a stream.
    parameters : tuple of inspect.Parameter
        What the body gives, in the order of the function.
    whole_body : bool
        The one parameter is a pydantic model and takes the whole body.
    defaults : dict
        Values of parameters whose default is a pydantic ``Field``.
    request : str or None
        The parameter that takes the HTTP request itself; it is none of `parameters`.
    keys : tuple of str
        Further names that the body gives, of an unpacked TypedDict.
    reserved : frozenset of str
        Names of parameters that no caller gives: ``**more`` cannot take them.
    """

    input: TypeAdapter[Any]
    output: Output
    parameters: tuple[inspect.Parameter, ...]
    whole_body: bool
    defaults: dict[str, Any]
    models: dict[str, TypeAdapter[Any]]
    request: str | None = None
    keys: tuple[str, ...] = ()
    reserved: frozenset[str] = frozenset()

    def python_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of a call from Python, where models may be given as their data.

        All else is taken as it is, as of any call in Python. Of the one model its fields may be
        given; what takes nothing but the request has its arguments there, see `body`.

        Raises
        ------
        pydantic.ValidationError
            When they do not fit the model.
        """
        if self.request is not None:
            args, kwargs = self._by_name(args, kwargs)
            if not self.parameters and not self.keys:
                return (), {}
        if self._by_fields(args, kwargs):
            return (self.input.validate_python(kwargs),), {}
        names = [p.name for p in self.parameters]
        names += [""] * (len(args) - len(names))
        args = tuple(self._as_model(n, v) for n, v in zip(names, args, strict=False))
        return args, {n: self._as_model(n, v) for n, v in kwargs.items()}

    def body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return the JSON of a call from Python.

        Raises
        ------
        ValueError
            When the arguments have none.
        """
        args, kwargs = self._by_name(args, kwargs)
        values: Any = args[0] if args else kwargs
        if self.whole_body and not self._by_fields(args, kwargs):
            values = kwargs.get(self.parameters[0].name)
        return to_json(values) if args or kwargs else b""

    def _by_name(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give arguments by name: the request, which no caller gives, may stand before them."""
        names = [p.name for p in self.parameters if p.kind is not p.POSITIONAL_ONLY]
        if len(names) < len(self.parameters):
            return args, kwargs
        return args[len(names) :], {**dict(zip(names, args, strict=False)), **kwargs}

    def _by_fields(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Say whether the one model is given by its fields."""
        if not self.whole_body or args or self.parameters[0].name in kwargs:
            return False
        return bool(kwargs) or self.parameters[0].default is inspect.Parameter.empty

    def _as_model(self, name: str, value: Any) -> Any:
        adapter = self.models.get(name) if isinstance(value, (dict, list)) else None
        return value if adapter is None else adapter.validate_python(value)

    def arguments(self, body: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Validate a JSON body and return positional and named arguments.

        An empty body counts as an empty object; for a model, as none at all.

        Raises
        ------
        pydantic.ValidationError
            When the body is malformed or does not fit.
        """
        if self.whole_body:
            return self._whole(body)
        if self.request is not None and not self.parameters and not self.keys:
            return (), {}  # it reads the body itself, which may be anything
        value = self.input.validate_json(body or b"{}")
        args: list[Any] = []
        kwargs = self._without_reserved(value.__pydantic_extra__ or {})
        for number, parameter in enumerate(self.parameters):
            found = getattr(value, f"field_{number}")
            if parameter.kind is parameter.POSITIONAL_ONLY:
                args.append(found)
            else:
                kwargs[parameter.name] = found
        for number, name in enumerate(self.keys, len(self.parameters)):
            found = getattr(value, f"field_{number}")
            kwargs |= {} if found is UNGIVEN else {name: found}
        return tuple(args), kwargs

    def _without_reserved(self, more: dict[str, Any]) -> dict[str, Any]:
        errors = [
            InitErrorDetails(type="extra_forbidden", loc=(name,), input=more[name])
            for name in self.reserved & more.keys()
        ]
        if errors:
            raise ValidationError.from_exception_data("arguments", errors)
        return dict(more)

    def _whole(self, body: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (parameter,) = self.parameters
        if not body and parameter.default is not parameter.empty:
            return (), {}
        if not body:
            missing = InitErrorDetails(type="missing", loc=(), input=None)
            raise ValidationError.from_exception_data(parameter.name, [missing])
        value = self.input.validate_json(body)
        if parameter.kind is parameter.POSITIONAL_ONLY:
            return (value,), {}
        return (), {parameter.name: value}


def read_signature(
    function: Callable[..., Any], hints: Mapping[str, Any], skip_first: bool
) -> Signature:
    """Derive the signature of `function`.

    Parameters
    ----------
    hints : mapping
        Its resolved type hints.
    skip_first : bool
        Leave the first parameter out: it is the result of setup_function.

    Raises
    ------
    TypeError
        When there is no first parameter to leave out.
    """
    parameters, request, reserved = _of_callers(function, hints, skip_first)
    plain = tuple(p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    more = next((p for p in parameters if p.kind is p.VAR_KEYWORD), None)
    keys = unpacked(hints.get(more.name)) if more is not None else None
    more = more if keys is None else None
    taken = {p.name for p in plain} | reserved
    keys = {name: key for name, key in (keys or {}).items() if name not in taken}
    returned = item_type(function, hints.get("return", Any))
    output = output_of(_name(function), returned, defined_at(function))
    defaults = {
        p.name: p.default.get_default(call_default_factory=True)
        for p in plain
        if isinstance(p.default, FieldInfo) and not p.default.is_required()
    }
    types = {p.name: hints.get(p.name) for p in plain} | {n: key.type for n, key in keys.items()}
    models = {name: _adapter(kind) for name, kind in types.items() if _holds_model(kind)}
    is_whole = len(plain) == 1 and more is None and not keys and _is_model(types[plain[0].name])
    if is_whole:
        body = models[plain[0].name]
    else:
        body = TypeAdapter(_body(function, plain, keys, more, hints))
    return Signature(
        *(body, output, plain, is_whole, defaults, models, request, tuple(keys), reserved)
    )


def _of_callers(
    function: Callable[..., Any], hints: Mapping[str, Any], skip_first: bool
) -> tuple[list[inspect.Parameter], str | None, frozenset[str]]:
    """Return the parameters that callers give, and the name of the one that takes the request.

    Then the names of those that nobody gives, which no caller may use for another value.
    """
    parameters = list(inspect.signature(function).parameters.values())
    of_nobody = _bound(function)
    if skip_first:
        of_nobody += parameters[:1]
        parameters = _without_first(function, parameters)
    requests = [p for p in parameters if _is_request(hints.get(p.name))][:1]
    parameters = [p for p in parameters if p not in requests]
    reserved = {p.name for p in (*of_nobody, *requests) if p.kind not in _NAMELESS}
    return parameters, requests[0].name if requests else None, frozenset(reserved)


def _bound(function: Any) -> list[inspect.Parameter]:
    """Return the parameter that a method's own object takes."""
    inner = getattr(function, "__func__", None)
    return list(inspect.signature(inner).parameters.values())[:1] if inner is not None else []


def _is_request(annotation: Any) -> bool:
    return is_class_of(without_none(annotation), Request)


def _without_first(
    function: Callable[..., Any], parameters: list[inspect.Parameter]
) -> list[inspect.Parameter]:
    first = parameters[0] if parameters else None
    if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        raise TypeError(
            f"setup_function returned a value, but `{_name(function)}` takes no first argument "
            "for it; add one, or let setup_function return None"
        )
    return parameters if first.kind is first.VAR_POSITIONAL else parameters[1:]


def _body(
    function: Callable[..., Any],
    parameters: tuple[inspect.Parameter, ...],
    keys: Mapping[str, Key],
    more: inspect.Parameter | None,
    hints: Mapping[str, Any],
) -> type[BaseModel]:
    """Make the model of the body.

    Its fields are numbered and bear the parameters' names as aliases: a model would not have a
    field named ``copy`` or ``_x``.
    """
    config = ConfigDict(arbitrary_types_allowed=True, extra="allow" if more else "forbid")
    fields: dict[str, Any] = {}
    for number, parameter in enumerate(parameters):
        annotation = hints.get(parameter.name, Any)
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[f"field_{number}"] = (_aliased(annotation, parameter.name), default)
    for number, (name, key) in enumerate(keys.items(), len(parameters)):
        # What a factory makes is in no schema.
        default = ... if key.is_required else Field(default_factory=lambda: UNGIVEN)
        fields[f"field_{number}"] = (_aliased(key.type, name), default)
    if more is not None and more.name in hints:
        fields["__pydantic_extra__"] = (dict.__class_getitem__((str, hints[more.name])), Field())
    title = "".join(part.capitalize() for part in _name(function).split("_")) + "Input"
    model: type[BaseModel] = create_model(title, __config__=config, **fields)
    return model


def _aliased(annotation: Any, name: str) -> Any:
    """Give a parameter its own name in JSON, unless its ``Field`` says another."""
    within = [item for item in get_args(annotation) if isinstance(item, FieldInfo)]
    if any(item.alias for item in within):
        return annotation
    return Annotated[annotation, Field(alias=name)]


def _name(function: Any) -> str:
    while not hasattr(function, "__name__") and hasattr(function, "func"):  # functools.partial
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _is_model(annotation: Any) -> bool:
    """Whether it is a pydantic model, perhaps annotated or optional."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    kind = without_none(annotation)
    return is_class_of(kind, BaseModel) if kind is annotation else _is_model(kind)


def _holds_model(annotation: Any) -> bool:
    """Whether a pydantic model is somewhere in it, as in a union or a list."""
    inner = get_args(annotation)
    return is_class_of(annotation, BaseModel) or any(_holds_model(part) for part in inner)


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    if _is_model(annotation):  # has a configuration of its own
        return TypeAdapter(annotation)
    return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))


def streams(function: Callable[..., Any]) -> bool:
    """Whether a function yields its results one by one."""
    inner = inspect.unwrap(function)
    return inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)


def item_type(function: Callable[..., Any], annotation: Any) -> Any:
    """Return the type of one item when the function is a generator."""
    if streams(function) and get_origin(annotation) in _STREAMS:
        return get_args(annotation)[0]
    return annotation
