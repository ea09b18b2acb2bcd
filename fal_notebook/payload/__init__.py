"""The payload of a function: what it needs from the notebook, by value, checked and digested.

What is captured is found by `items`, pickled by `pickling`, compared by `digest`; where it runs
is left to others.
"""

from __future__ import annotations

import collections
import heapq
import io
import json
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any

from typing_extensions import get_type_hints

from fal_notebook import cell
from fal_notebook.app import is_app
from fal_notebook.endpoints import endpoints_of
from fal_notebook.exceptions import (
    CaptureError,
    PayloadTooLargeError,
    UnpicklableError,
)
from fal_notebook.local_requirements import folders
from fal_notebook.payload import class_ids, local_modules
from fal_notebook.payload.digest import digest_of
from fal_notebook.payload.items import Item, collect
from fal_notebook.payload.manifest import manifest_of, name_of, plain, python_minor, sources_of
from fal_notebook.payload.pickling import LimitedBuffer, PayloadPickler, SizeExceeded
from fal_notebook.payload.reductions import Reductions
from fal_notebook.payload.references import (
    Reference,
    import_path,
    is_by_value,
    named_references,
    written_variables,
)
from fal_notebook.payload.secret_check import refuse_secrets
from fal_notebook.payload.secret_scan import environment_secrets
from fal_notebook.payload.sources import source_of
from fal_notebook.runner.envelope import pack
from fal_notebook.runner.sdk_server import SdkServer

WARN_BYTES = 10 * 1000 * 1000
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
        warnings = (
            *_size_warning(len(pickled), items),
            *_code_warnings(items, modules, identity),
            *_file_warnings(items),
            *_shared_variables(items),
            *_unknown_names(items, allow_secret, identity.get("options", ())),
        )
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
        if isinstance(item.value, types.FunctionType) and is_by_value(item.value):
            pickler.add_class_body_globals(item.value)
    try:
        pickler.dump(content)
    except SizeExceeded:
        raise PayloadTooLargeError(
            f"the payload of `{items[0].name}` is above {_megabytes(MAX_BYTES)}; the largest "
            f"values are {_largest(items)}; load them in setup_function instead"
        ) from None
    except Exception as error:  # any class may raise anything from its __reduce__
        raise UnpicklableError(f"`{items[0].name}` cannot be pickled: {error}") from error
    return buffer.getvalue()


def _size_warning(size: int, items: list[Item]) -> list[str]:
    if size <= WARN_BYTES:
        return []
    return [
        f"the payload of `{items[0].name}` is {_megabytes(size)}; "
        f"the largest values are {_largest(items)}"
    ]


def _largest(items: list[Item]) -> str:
    sized = [item for item in items if item.how != "signature" and item.size > WARN_BYTES / 1000]
    largest = heapq.nlargest(3, sized, key=lambda item: item.size)
    return ", ".join(f"`{item.name}` ({_megabytes(item.size)})" for item in largest)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _code_warnings(
    items: list[Item], modules: Mapping[str, Any], identity: Mapping[str, Any]
) -> list[str]:
    options, files = identity.get("options", {}), identity.get("files", ())
    found: dict[str, None] = {}
    for item in items:
        if isinstance(item.value, types.FunctionType) and is_by_value(item.value):
            source = source_of(item.value) or ""
            used = {r.name: r.value for r in named_references(item.value) if _is_told(r)}
            line = item.value.__code__.co_firstlineno
            found |= dict.fromkeys(cell.warnings(source, line, used, files))
    used_modules = {m for item in items for m in item.modules}
    installed = [folder.resolve() for folder in folders(options.get("requirements"))]
    unless = ", unless the image brings it" if options.get("image") else ""
    brought = {*modules, *(file.split("/")[0].removesuffix(".py") for file in files)}
    for name in local_modules.missing(used_modules, brought, installed):
        user = next(i for i in items if name in {m.split(".")[0] for m in i.modules})
        owner = user if user.owner is None or user.kind == "function" else user.owner
        found[
            f"`{owner.name}` uses the module `{name}`, which lies beside the notebook where no "
            f"runner finds it{unless}; add local_python_modules={name}"
        ] = None
    return list(found)


def _is_told(reference: Reference) -> bool:
    """Whether warnings need the value: of what is no global, only paths."""
    return reference.how == "global" or isinstance(reference.value, (str, PurePath))


def _shared_variables(items: list[Item]) -> Iterator[str]:
    """Say which variable of an outer function is written by one of several that are captured."""
    users: dict[int, list[tuple[str, Item]]] = {}
    for item in items:
        function = item.value
        if isinstance(function, types.FunctionType) and is_by_value(function):
            cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
            for name, cell in cells:
                users.setdefault(id(cell), []).append((name, item))
    for found in users.values():
        name, first = found[0]
        written = any(name in written_variables(i.value.__code__) for name, i in found)
        if written and len({id(item.value) for _, item in found}) > 1:
            others = " and ".join(f"`{item.name}`" for _, item in found[1:])
            yield (
                f"`{first.name}` and {others} share the variable `{name}`, and in a runner each "
                "has one of its own; keep it in a list, a dict or an object that both have"
            )


def _file_warnings(items: list[Item]) -> list[str]:
    return [
        f"{item.sentence()}, {'an' if isinstance(item.value, io.IOBase) else 'which holds an'} "
        "open file, and a runner gets a copy of its text as it is now; "
        "open it in setup_function or inside the function"
        for item in items
        if item.holds_file
    ]


def _unknown_names(
    items: list[Item], allowed: Iterable[str], options: Iterable[str]
) -> Iterator[str]:
    """Say which of the names in allow_secret are those of no captured value and no option."""
    known = list(dict.fromkeys(item.name for item in items))
    for name in allowed:
        if name not in known and name not in options:
            nearest = get_close_matches(name, known, n=1)
            meant = f"; did you mean `{nearest[0]}`?" if nearest else ""
            yield f"allow_secret names `{name}`, which is not captured{meant}"
