"""How captured code refers to things: by value or by import path, and through which names.

Walking the references is left to `items` and `digest`.
"""

from __future__ import annotations

import ast
import dis
import functools
import itertools
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

import cloudpickle

from fal_notebook.runner.pickles import is_dispatcher

_GLOBAL_OPERATIONS = {
    "LOAD_GLOBAL",
    "STORE_GLOBAL",
    "DELETE_GLOBAL",
    "LOAD_FROM_DICT_OR_GLOBALS",
}
CachedFunction = type(functools.lru_cache(lambda: None))
_SHELL = "IPython.core.interactiveshell"
_HEAP_TYPE = 1 << 9  # CPython's Py_TPFLAGS_HEAPTYPE: classes that Python code can define


class Reference(NamedTuple):
    """One thing that a function refers to by name; `how` says by what kind of name."""

    how: str
    name: str
    value: Any


def is_class(value: Any) -> bool:
    """Whether `value` is a class, without triggering its ``__class__`` property."""
    return issubclass(type(value), type)


def is_function(value: Any) -> bool:
    """Whether `value` is a Python function, cached ones included."""
    return isinstance(value, (types.FunctionType, CachedFunction))


def attributes_of(function: types.FunctionType) -> dict[str, Any]:
    """Return what was set on a function, without what a dispatcher works with."""
    return {} if is_dispatcher(function) else vars(function)


def is_by_value(value: Any) -> bool:
    """Whether cloudpickle ships this function, class or module itself, not its import path."""
    if isinstance(value, types.ModuleType):
        return _registered(value.__name__)
    if not is_function(value) and not (is_class(value) and value.__flags__ & _HEAP_TYPE):
        return False
    name = getattr(value, "__module__", None)
    if not isinstance(name, str) or name == "__main__" or _registered(name):
        return True
    if is_class(value) or isinstance(value, CachedFunction):
        return _find(sys.modules.get(name), value.__qualname__) is not value
    return import_path(value) is None


def import_path(function: types.FunctionType) -> tuple[str, str] | None:
    """Return module and attribute path of a library's function, or None for one of the notebook.

    The path leads through ``__func__`` for the function in a class method.
    """
    if function.__globals__.get("__name__") == _SHELL and function.__name__ == "open":
        return "builtins", "open"  # IPython's guard around it, which every notebook has
    found = _find(sys.modules.get(function.__module__), function.__qualname__)
    if found is function:
        return function.__module__, function.__qualname__
    if isinstance(found, types.MethodType) and found.__func__ is function:
        return function.__module__, f"{function.__qualname__}.__func__"
    return None


def local_module_of(value: Any) -> types.ModuleType | None:
    """Return the module shipped by value in which `value` is defined, if there is one."""
    name = getattr(value, "__module__", None)
    return sys.modules.get(name) if isinstance(name, str) and _registered(name) else None


def named_references(function: types.FunctionType) -> Iterator[Reference]:
    """Yield the globals, closure variables and default arguments that a function uses.

    A dispatcher uses its implementations.
    """
    if is_dispatcher(function):
        yield from _implementations(function)
        return
    for name in dict.fromkeys((*global_names(function.__code__), *unseen_names(function))):
        if name in function.__globals__:
            yield Reference("global", name, function.__globals__[name])
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield Reference("closure variable", name, cell.cell_contents)
        except ValueError:  # a variable that is not assigned yet
            continue
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    defaults = function.__defaults__ or ()
    for name, value in zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True):
        yield Reference("default argument", name, value)
    for name, value in (function.__kwdefaults__ or {}).items():
        yield Reference("default argument", name, value)


def class_references(cls: type) -> Iterator[Reference]:
    """Yield the globals that a class names in annotations that are texts.

    Pydantic has resolved those of its models; of a TypedDict, say, whoever reads it does.
    """
    if "__pydantic_fields__" in vars(cls) or "model_fields" in vars(cls):
        return
    scope = scope_of(cls)
    annotations = vars(cls).get("__annotations__", {}).values()
    texts = itertools.chain.from_iterable(map(_texts, annotations))
    for name in dict.fromkeys(name for text in texts for name in _names_in(text)):
        if name in scope:
            yield Reference("global", name, scope[name])


def scope_of(cls: type) -> dict[str, Any]:
    """Return the variables of the module in which a class was defined."""
    module = sys.modules.get(cls.__module__)
    return vars(module) if module is not None else {}


def _texts(annotation: Any) -> Iterator[str]:
    """Yield the texts in an annotation that stand for types."""
    if isinstance(annotation, str):
        yield annotation
    elif isinstance(annotation, typing.ForwardRef):
        yield annotation.__forward_arg__
    for part in _parts(annotation):
        yield from _texts(part)


def _parts(annotation: Any) -> tuple[Any, ...]:
    if type(annotation) is typing.TypeVar:
        return annotation.__bound__, *annotation.__constraints__
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ()
    return args[:1] if origin is typing.Annotated else args


def _implementations(dispatcher: types.FunctionType) -> Iterator[Reference]:
    registry: dict[Any, Any] = vars(dispatcher)["registry"]
    for kind, implementation in registry.items():
        home = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
        name = f"{dispatcher.__name__} of {home}{kind.__qualname__}"
        yield Reference("implementation", name, implementation)


@functools.lru_cache(maxsize=1024)
def global_names(code: types.CodeType) -> tuple[str, ...]:
    """Return the global names that code reads or writes, nested functions and classes included."""
    names = {i.argval: None for i in dis.get_instructions(code) if i.opname in _GLOBAL_OPERATIONS}
    for nested in _nested(code):
        names |= dict.fromkeys((*class_body_names(nested), *global_names(nested)))
    return tuple(names)


@functools.lru_cache(maxsize=1024)
def class_body_names(code: types.CodeType) -> tuple[str, ...]:
    """Return names that class bodies inside a function take from globals."""
    instructions = list(dis.get_instructions(code))
    stored = {i.argval for i in instructions if i.opname == "STORE_NAME"}
    names = {i.argval: None for i in instructions if i.opname == "LOAD_NAME"}
    for nested in _nested(code):
        names |= dict.fromkeys(class_body_names(nested))
    return tuple(n for n in names if n not in stored and not n.startswith("__"))


def unseen_names(function: types.FunctionType) -> tuple[str, ...]:
    """Return the global names for which cloudpickle does not look.

    It looks for LOAD_GLOBAL only, while class bodies have LOAD_NAME, and annotations may be text.
    """
    texts = itertools.chain.from_iterable(map(_texts, function.__annotations__.values()))
    in_texts = (name for text in texts for name in _names_in(text))
    return (*class_body_names(function.__code__), *in_texts)


@functools.lru_cache(maxsize=1024)
def _names_in(annotation: str) -> tuple[str, ...]:
    """Return the names in an annotation's text, and in texts within it."""
    try:
        nodes = list(ast.walk(ast.parse(annotation, mode="eval")))
    except (SyntaxError, ValueError):  # it is no type, just text
        return ()
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
    inner = (_names_in(text) for text in constants if type(text) is str)
    return (*names, *itertools.chain.from_iterable(inner))


def imported_names(code: types.CodeType) -> set[str]:
    """Return the modules that code imports while it runs, relative imports excepted."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "IMPORT_NAME"}
    return names.union(*(imported_names(nested) for nested in _nested(code))) - {""}


def _nested(code: types.CodeType) -> list[types.CodeType]:
    return [const for const in code.co_consts if isinstance(const, types.CodeType)]


def _registered(name: str) -> bool:
    registry = cloudpickle.list_registry_pickle_by_value()
    return bool(registry) and any(name == r or name.startswith(r + ".") for r in registry)


def _find(module: types.ModuleType | None, qualname: str) -> Any:
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found
