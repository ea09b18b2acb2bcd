"""What a function captures: each value under the name by which the code reaches it.

A value that cannot be pickled is found here and reported with the path that leads to it.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import types
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fal_notebook.exceptions import UnpicklableError
from fal_notebook.payload.pickling import CountingSink, can_pickle, parts, pickled_alone
from fal_notebook.payload.reductions import Reductions
from fal_notebook.payload.references import (
    CachedFunction,
    Reference,
    class_references,
    imported_names,
    is_by_value,
    is_class,
    is_function,
    local_module_of,
    named_references,
)

_HISTORY = ("_ih", "_oh", "_dh")
_LONGEST_PATH = 100
_DEEPEST = 1000  # so many parts inside of parts are looked at
_TOGETHER = 1000  # so many parts of one value are tried at once to find the culprit among them


@dataclass(eq=False)
class Item:
    """A captured value, its name, and the item whose code or data refers to it.

    Attributes
    ----------
    how : str
        ``root``, ``global``, ``closure variable``, ``default argument``, ``module``,
        ``signature`` or ``part``.
    size : int
        Bytes of what is the value's own in the pickle.
    modules : set of str
        Modules that the value refers to by import path.
    holds_file : bool
        The value is an open file, or has one in it.
    """

    name: str
    value: Any
    how: str = "root"
    owner: Item | None = None
    size: int = 0
    modules: set[str] = field(default_factory=set)
    holds_file: bool = False

    @property
    def kind(self) -> str:
        """``function``, ``class``, ``module``, ``import``, ``handle``, or the type's name."""
        if isinstance(self.value, types.ModuleType):
            return "module"
        if is_function(self.value) or is_class(self.value):
            own = "function" if is_function(self.value) else "class"
            return own if is_by_value(self.value) else "import"
        if isinstance(self.value, types.BuiltinFunctionType):
            return "import"
        return "handle" if is_handle(self.value) else type(self.value).__name__

    @property
    def is_method(self) -> bool:
        """Whether this is a function of a class that is captured."""
        owner = self.owner.value if self.owner is not None else None
        return self.how == "part" and is_class(owner) and is_function(self.value)

    @property
    def is_inside(self) -> bool:
        """Whether this is a part of what is captured by the same name: a method, or one cached."""
        owner = self.owner.value if self.owner is not None else None
        return self.is_method or isinstance(owner, CachedFunction)

    @property
    def is_generated(self) -> bool:
        """Whether this is a method that a decorator made, such as those of a dataclass."""
        if not self.is_method or not isinstance(self.value, types.FunctionType):
            return False
        cls: Any = self.owner.value if self.owner is not None else None
        home = self.value.__globals__.get("__name__")
        return self.value.__code__.co_filename == "<string>" or home != cls.__module__

    @property
    def is_of_the_notebook(self) -> bool:
        """Whether this is the shell, or its history of cells and results."""
        owner = self.owner.value if self.owner is not None else None
        scope = owner.__globals__ if isinstance(owner, types.FunctionType) else {}
        history = (scope.get(name) for name in _HISTORY) if "get_ipython" in scope else ()
        return self.how == "global" and (
            (self.name == "get_ipython" and isinstance(self.value, types.MethodType))
            or any(self.value is known for known in history)
        )

    def sentence(self) -> str:
        """Return the path to the value, such as "`predict` calls `helper`, which uses `db`"."""
        path = [self]
        while path[0].owner is not None:
            path.insert(0, path[0].owner)
        # The function inside of a partial or a cache has the name of that.
        named = [item for item in path[1:] if item.owner and item.name != item.owner.name]
        steps = ", which ".join(_step(item) for item in named)
        return f"`{path[0].name}` {steps}".rstrip()


def collect(roots: Iterable[Item], reductions: Reductions) -> list[Item]:
    """Return all items that the roots lead to, the roots first, each with its size.

    Raises
    ------
    UnpicklableError
        When the value of an item cannot be pickled.
    """
    queue = deque(roots)
    seen: set[tuple[str | None, int]] = set()
    items: list[Item] = []
    while queue:
        item = queue.popleft()
        # What is met under its own name again, or under another one first, is the same item.
        # Other values are not asked: some make up any attribute, others fail.
        named = is_function(item.value) or is_class(item.value)
        own_name = named and item.name == item.value.__name__
        key = (None if own_name else item.name, id(item.value))
        if key in seen:
            continue
        seen |= {key, (None, id(item.value))}
        items.append(item)
        queue.extend(_references(item, reductions))
    return items


def _references(item: Item, reductions: Reductions) -> Iterator[Item]:
    found = _measure(item, reductions)
    function = item.value
    if isinstance(function, types.FunctionType) and is_by_value(function):
        item.modules |= imported_names(function.__code__)
        if local_module_of(function) is None:  # else it is a part of its module, a root itself
            for how, name, value in named_references(function):
                yield Item(name, value, how, item)
    if is_class(function) and is_by_value(function) and local_module_of(function) is None:
        for how, name, value in class_references(function):
            yield Item(name, value, how, item)
    for how, name, value in found:
        yield Item(name, value, how, item)


def _measure(item: Item, reductions: Reductions) -> list[Reference]:
    """Set the item's size and modules, and return what its pickle leaves out."""
    named = is_function(item.value) or is_class(item.value)
    if (named or isinstance(item.value, types.ModuleType)) and not is_by_value(item.value):
        item.modules.add(str(item.value.__module__ if named else item.value.__name__))
        return []
    if item.is_of_the_notebook:
        raise UnpicklableError(
            f"{item.sentence()}, which belongs to the notebook; a runner has none, leave it out"
        )
    sink = CountingSink()
    try:
        pickler = pickled_alone(item.value, sink, reductions)
    except Exception as error:  # any class may raise anything from its __reduce__
        raise UnpicklableError(_unpicklable(item, error)) from error
    item.size = sink.size
    item.modules |= pickler.referred
    item.holds_file = pickler.holds_file
    return [Reference("part", value.__name__, value) for value in pickler.found]


def _unpicklable(item: Item, error: Exception) -> str:
    if isinstance(error.__cause__ or error, RecursionError):
        return f"{item.sentence()}, {_a_type(item.value)} nested too deeply to travel; flatten it"
    path, culprit = _culprit(item.value)
    path = path if len(path) <= _LONGEST_PATH else f"{path[:40]}…{path[-40:]}"
    what = _a_type(culprit)
    if item.owner is None:
        end = f" holds at {path} {what}" if path else f" is {what}"
    else:
        end = f", whose {path} is {what}" if path else f", {what}"
    root = item
    while root.owner is not None:
        root = root.owner
    where = "setup(self)" if is_class(root.value) else "setup_function or inside the function"
    return f"{item.sentence()}{end}, which cannot be pickled{_reason(error)}; create it in {where}"


def _reason(error: Exception) -> str:
    """Return what a class of the user's says against it; others say what the sentence says."""
    if isinstance(error, (TypeError, AttributeError, pickle.PicklingError)):
        return ""
    said = f"{type(error).__name__}: {error}"
    return f" ({said[:_LONGEST_PATH]})"


def _culprit(value: Any) -> tuple[str, Any]:
    """Return the path inside `value` to the deepest part that cannot be pickled, and that part."""
    path = ""
    seen: list[Any] = []
    while len(seen) < _DEEPEST and (found := _first_failing(value, seen)) is not None:
        seen.append(value)
        path, value = path + found[0], found[1]
    return path, value


def _first_failing(value: Any, seen: list[Any]) -> tuple[str, Any] | None:
    others = (item for item in _told(value) if not _is_among(item[1], (value, *seen)))
    while some := list(itertools.islice(others, _TOGETHER)):
        if len(some) == 1 or not can_pickle([part for _, part in some]):
            for label, part in some:
                if not can_pickle(part):
                    return label, part
    return None


def _told(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value, as far as its own code gives them."""
    with contextlib.suppress(Exception):
        yield from parts(value)


def _is_among(part: Any, values: Sequence[Any]) -> bool:
    return any(part is other for other in values)


def _a_type(value: Any) -> str:
    kind = type(value)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    return f"{'an' if name.lstrip('_')[0].lower() in 'aeiou' else 'a'} {name}"


def _step(item: Item) -> str:
    if item.is_method:
        return f"has the method `{item.name}`"
    if item.how == "signature":
        return "has a signature"
    if item.how == "default argument":
        return f"has the default argument `{item.name}`"
    if is_function(item.value) and is_by_value(item.value):
        return f"calls `{item.name}`"
    if item.how in ("global", "closure variable") and not is_class(item.value):
        return f"uses {item.how} `{item.name}`"
    return f"uses the class `{item.name}`" if is_class(item.value) else f"uses `{item.name}`"


def is_handle(value: Any) -> bool:
    kinds = type(value).__mro__  # by name, so that nothing is imported to find out
    return any((k.__module__, k.__name__) == ("fal_notebook.handle", "Handle") for k in kinds)
