"""The parts of a notebook's class that make it what it is, without those that are generated.

Plain classes, enums, dataclasses and pydantic models; `digest` hashes what is returned here.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import sys
import types
from typing import Any

from fal_notebook.runner.pickles import BUILT

_GENERATED = {
    "__dict__",
    "__weakref__",
    "__module__",
    "__firstlineno__",
    "__static_attributes__",  # its order follows the hash seed
    "__annotate__",
    "__annotate_func__",
    "__annotations_cache__",
    "__signature__",
    "__abstractmethods__",
    "_abc_impl",
    "__protocol_attrs__",
    "__non_callable_proto_members__",
    "__slotnames__",  # copyreg notes them when an instance is copied or pickled
}
_PYDANTIC_KEPT = ("__pydantic_generic_metadata__", "__pydantic_root_model__")
_OF_EACH_MEMBER = {"_value_", "_name_", "__objclass__", "_sort_order_"}
_ENUM_GENERATED = {
    "_member_names_",
    "_member_map_",
    "_value2member_map_",
    "_unhashable_values_",
    "_unhashable_values_map_",
    "_hashable_values_",
    "_generate_next_value_",
    "_new_member_",
    "_use_args_",
    "_use_args",
    "_member_type_",
    "_value_repr_",
    "__new__",
}


def class_parts(cls: type) -> dict[str, Any]:
    """Return what defines the class, by names that cannot clash with those of members."""
    parts = {
        "class name": cls.__qualname__,
        "metaclass": type(cls),
        "bases": cls.__bases__,
        "members": _members(cls),
    }
    if issubclass(cls, enum.Enum):
        parts["enum"] = [
            (name, member.name, member.value, _of_member(member))
            for name, member in cls.__members__.items()
        ]
    if isinstance(cls, abc.ABCMeta):
        parts["registered"] = _registered(cls)
    if _is_pydantic(cls):
        parts["pydantic"] = _pydantic_parts(cls)
    return parts


def _of_member(member: Any) -> dict[str, Any]:
    """Return what was given to an enum's member besides its value."""
    return {name: part for name, part in vars(member).items() if name not in _OF_EACH_MEMBER}


def _registered(cls: Any) -> set[Any]:
    """Return the classes that were registered with an abstract one."""
    dump: Any = getattr(abc, "_get_dump", None)  # where cloudpickle finds them, too
    found = (reference() for reference in dump(cls)[0]) if dump is not None else ()
    return {kind for kind in found if kind is not None}


def _members(cls: type) -> dict[str, Any]:
    skipped = set(_GENERATED)
    slots = vars(cls).get("__slots__", ())
    skipped.update((slots,) if isinstance(slots, str) else slots)
    if issubclass(cls, enum.Enum):
        skipped |= _ENUM_GENERATED | set(cls.__members__)
    if not _is_pydantic(cls):
        skipped.discard("__signature__")  # of others nobody but the notebook makes one
    members = {name: value for name, value in vars(cls).items() if name not in skipped}
    if not members.get("__annotations__", True):  # made by who looks for them
        del members["__annotations__"]
    if getattr(cls, "_is_protocol", None) is not None and not _has_own_init(members):
        members.pop("__init__", None)
    members = {n: v for n, v in members.items() if not _by_attrs(v) and n not in BUILT}
    if dataclasses.is_dataclass(cls) and (cls.__doc__ or "").startswith(f"{cls.__name__}("):
        members.pop("__doc__", None)  # shows addresses and orders of defaults
    if _is_pydantic(cls):
        members = {n: v for n, v in members.items() if not _pydantic_generated(n)}
    return members


def _has_own_init(members: dict[str, Any]) -> bool:
    """Say whether a protocol's `__init__` is the notebook's; typing's is replaced at first use."""
    init = members.get("__init__")
    return isinstance(init, types.FunctionType) and init.__module__ != "typing"


def _by_attrs(value: Any) -> bool:
    """Say whether attrs wrote it, from what stands in ``__attrs_attrs__``, with random numbers."""
    code = getattr(value, "__code__", None)
    return code is not None and code.co_filename.startswith("<attrs generated")


def _is_pydantic(cls: type) -> bool:
    base = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    return base is not None and issubclass(cls, base)


def _pydantic_generated(name: str) -> bool:
    generated = ("model_fields", "__class_vars__", "__private_attributes__", "model_config")
    return name.startswith("__pydantic_") or name in generated


def _pydantic_parts(cls: Any) -> dict[str, Any]:
    return {
        "config": dict(cls.model_config),
        "fields": {name: _field(field) for name, field in cls.model_fields.items()},
        "private": {n: _private(attr) for n, attr in cls.__private_attributes__.items()},
        "decorators": _decorators(getattr(cls, "__pydantic_decorators__", None)),
        "kept": {name: vars(cls).get(name) for name in _PYDANTIC_KEPT},
    }


def _private(attribute: Any) -> Any:
    return getattr(attribute, "default", None), getattr(attribute, "default_factory", None)


def _decorators(infos: Any) -> dict[str, Any]:
    kinds = getattr(type(infos), "__slots__", None) or vars(infos)
    groups = {kind: getattr(infos, kind, None) for kind in kinds}
    return {
        f"{kind} {name}": decorator.info
        for kind, group in groups.items()
        if isinstance(group, dict)
        for name, decorator in group.items()
    }


def _field(field: Any) -> dict[str, Any]:
    """Return a field's public attributes; the others say how far pydantic has come with it."""
    names = [s for s in field.__slots__ if not s.startswith("_") and s != "evaluated"]
    return {name: getattr(field, name) for name in names}
