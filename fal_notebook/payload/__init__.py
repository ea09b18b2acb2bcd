"""The payload of a function: what it needs from the notebook, by value, checked and digested.

What is captured is found by `items`, pickled by `pickling`, compared by `digest`; where it runs
is left to others.
"""

from __future__ import annotations

import collections
import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from typing_extensions import get_type_hints

from fal_notebook.app import is_app
from fal_notebook.endpoints import endpoints_of
from fal_notebook.exceptions import (
    CaptureError,
    PayloadTooLargeError,
    UnpicklableError,
)
from fal_notebook.payload import class_ids, local_modules
from fal_notebook.payload.digest import digest_of
from fal_notebook.payload.items import Item, collect, is_handle
from fal_notebook.payload.manifest import manifest_of, name_of, plain, python_minor, sources_of
from fal_notebook.payload.notes import largest, megabytes, warnings_of
from fal_notebook.payload.pickling import LimitedBuffer, PayloadPickler, SizeExceeded
from fal_notebook.payload.reductions import Reductions
from fal_notebook.payload.references import (
    import_path,
    is_by_value,
    is_class,
)
from fal_notebook.payload.secret_check import refuse_secrets
from fal_notebook.payload.secret_scan import environment_secrets
from fal_notebook.runner.envelope import pack
from fal_notebook.runner.sdk_server import SdkServer

MAX_BYTES = 256 * 1000 * 1000
# Of these the source tells what changes.
_OF_CODE = ("function", "class", "module", "import", "handle")


@dataclass(frozen=True)
class Captured:
    """One captured value.

    Attributes
    ----------
    name : str
        The name by which the code reaches it.
    kind : str
        ``function``, ``class``, ``module``, ``import`` (a function or class that is imported),
        ``handle``, or the type's name, such as ``LogisticRegression``; of a parameter's default
        value followed by ``, a default``, of a variable of a closure by ``, of`` and its name.
    size : int
        Bytes of it in the payload; 0 for what the runner imports.
    digest : str
        12 hex digits that tell one value from another; "" of code, which its source tells.
    """

    name: str
    kind: str
    size: int
    digest: str = field(default="", repr=False)


@dataclass(frozen=True)
class Payload:
    """A captured function, ready to be sent.

    Attributes
    ----------
    content : bytes
        The payload file (see `fal_notebook.runner.envelope`).
    digest : str
        SHA-256 hex digest of what the function does; equal in every process for equal notebooks.
    manifest : dict
        The JSON in front of the pickle.
    captured : tuple of Captured
        The function first, then what it leads to.
    warnings : tuple of str
        One sentence each.
    modules : frozenset of str
        What the function and all that it leads to import, but for what travels inside.
    """

    content: bytes = field(repr=False)
    digest: str
    manifest: dict[str, Any] = field(repr=False)
    captured: tuple[Captured, ...]
    warnings: tuple[str, ...]
    modules: frozenset[str] = frozenset()


def capture(
    function: Callable[..., Any],
    *,
    setup_function: Callable[..., Any] | None = None,
    local_python_modules: Sequence[str] = (),
    identity: Mapping[str, Any] = types.MappingProxyType({}),
    allow_secret: Sequence[str] = (),
    known_secrets: Mapping[str, str] = types.MappingProxyType({}),
) -> Payload:
    """Capture a function with all that it needs from the notebook.

    Parameters
    ----------
    function : callable
        Plain, async, a generator or an async generator; decorated or partial; or an `App` class.
        Of a handle what it was made from, where it still has that.
    setup_function : callable, optional
        Runs once in each runner before the first request.
    local_python_modules : sequence of str
        Names of modules beside the notebook, to be shipped by value.
    identity : mapping
        JSON values (options, requirements) that take part in the digest.
    allow_secret : sequence of str
        Names of captured values in which a key may travel.
    known_secrets : mapping of str to str
        Name and value of secrets that must not be inside; those shorter than 8 are not looked for.

    Raises
    ------
    UnpicklableError, PayloadTooLargeError, SecretInPayloadError
        Each says in one sentence which value is at fault.
    CaptureError
        When a module or an annotation cannot be resolved.
    """
    if is_handle(function):
        function = getattr(function, "__wrapped__", function)
    modules = local_modules.load(local_python_modules)
    class_ids.track()
    with local_modules.shipped_by_value(modules):
        hints, reductions = _hints(function), Reductions()
        items = collect(_roots(function, setup_function, hints, modules), reductions)
        content = {
            "modules": modules,  # first, so that their functions are met inside of them
            "function": function,
            "setup": setup_function,
            "hints": hints,
        }
        pickled = _dump(content, items, reductions)
        sources = sources_of(items)
        known = {**environment_secrets(), **known_secrets}
        refuse_secrets(pickled, sources, items, known, allow_secret)
        told = json.dumps(dict(identity), sort_keys=True)  # options have no order
        identified = {**content, "identity": told, "python": python_minor()}
        digest = digest_of(identified, reductions)
        warnings = warnings_of(len(pickled), items, modules, identity, allow_secret)
        captured = _captured(items, reductions)
    used = {module for item in items for module in item.modules}
    manifest = manifest_of(function, setup_function, sources, digest, map(asdict, captured), used)
    imported = frozenset(used - modules.keys())
    return Payload(pack(manifest, pickled), digest, manifest, captured, warnings, imported)


def _captured(items: list[Item], reductions: Reductions) -> tuple[Captured, ...]:
    """Return what people are shown: methods count as a part of their class, say."""
    methods = collections.Counter[int]()
    for item in items:
        if item.is_inside:
            methods[id(item.owner)] += item.size
    made = {id(item) for item in items if item.is_generated}
    hidden = {id(i) for i in items if _is_inner(i) or i.is_inside or id(i.owner) in made}
    shown = [item for item in items if id(item) not in hidden]
    return tuple(
        Captured(i.name, _kind(i), i.size + methods[id(i)], _digest(i, reductions)) for i in shown
    )


def _digest(item: Item, reductions: Reductions) -> str:
    return "" if item.kind in _OF_CODE else digest_of(item.value, reductions)[:12]


def _is_inner(item: Item) -> bool:
    """Whether nobody has written it: ``__class__``, or IPython's guard around `open`."""
    if item.kind == "import" and isinstance(item.value, types.FunctionType):
        return import_path(item.value) == ("builtins", "open")
    return item.how == "signature" or (item.how, item.name) == ("closure variable", "__class__")


def _kind(item: Item) -> str:
    """Return the kind to show: defaults and closure variables are none of the notebook's."""
    if item.how == "closure variable" and item.owner is not None:
        return f"{item.kind}, of {item.owner.name}"
    return item.kind + ", a default" * (item.how == "default argument")


def _hints(function: Any) -> dict[str, Any]:
    """Return the resolved annotations of a function, or of an app's methods by their names."""
    if is_app(function):
        return {name: _hints(getattr(function, name)) for name in endpoints_of(function)}
    if isinstance(function, SdkServer):
        return {}  # it brings those of its endpoints along
    hinted = plain(function)
    if not hasattr(hinted, "__annotations__"):  # an object with a function's name, say
        hinted = type(hinted).__call__
    try:
        return get_type_hints(hinted, include_extras=True)
    except Exception as error:  # annotations are code: they may raise anything
        raise CaptureError(
            f"the annotations of `{name_of(function)}` cannot be resolved: {error}"
        ) from error


def _roots(
    function: Any, setup: Any, hints: dict[str, Any], modules: Mapping[str, types.ModuleType]
) -> list[Item]:
    root = Item(name_of(function), function)
    setups = [Item(name_of(setup), setup)] if setup is not None else []
    shipped = [Item(name, module, "module", root) for name, module in modules.items()]
    return [root, *setups, *shipped, Item("signature", hints, "signature", root)]


def _dump(content: dict[str, Any], items: list[Item], reductions: Reductions) -> bytes:
    buffer = LimitedBuffer(MAX_BYTES)
    pickler = PayloadPickler(buffer, reductions)
    for item in items:
        written = isinstance(item.value, types.FunctionType) or is_class(item.value)
        if written and is_by_value(item.value):
            pickler.add_unseen_globals(item.value)
    try:
        pickler.dump(content)
    except SizeExceeded:
        raise PayloadTooLargeError(
            f"the payload of `{items[0].name}` is above {megabytes(MAX_BYTES)}; the largest "
            f"values are {largest(items)}; load them in setup_function instead"
        ) from None
    except Exception as error:  # any class may raise anything from its __reduce__
        raise UnpicklableError(f"`{items[0].name}` cannot be pickled: {error}") from error
    return buffer.getvalue()
