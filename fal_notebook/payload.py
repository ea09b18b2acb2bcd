"""The payload of a function: what it needs from the notebook, by value, checked and digested.

What is captured is found by `capturing`, pickled by `pickling`, compared by `digest`; where it runs
is left to others.
"""

from __future__ import annotations

import functools
import heapq
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cloudpickle

from fal_notebook import cell, local_modules
from fal_notebook.capturing import Item, collect
from fal_notebook.digest import digest_of
from fal_notebook.exceptions import (
    CaptureError,
    PayloadTooLargeError,
    SecretInPayloadError,
    UnpicklableError,
)
from fal_notebook.pickling import LimitedBuffer, PayloadPickler, SizeExceeded, own_bytes
from fal_notebook.references import is_by_value, is_class, is_function
from fal_notebook.runner.envelope import pack
from fal_notebook.secret_scan import Finding, environment_secrets, scan, scan_known
from fal_notebook.sources import source_of

WARN_BYTES = 10 * 1000 * 1000
MAX_BYTES = 256 * 1000 * 1000


@dataclass(frozen=True)
class Captured:
    """One captured value.

    Attributes
    ----------
    name : str
        The name by which the code reaches it.
    kind : str
        ``function``, ``class``, ``module``, ``import`` (a function or class that is imported),
        ``handle``, or the type's name, such as ``LogisticRegression``.
    size : int
        Bytes of it in the payload; 0 for what the runner imports.
    """

    name: str
    kind: str
    size: int


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
    """

    content: bytes
    digest: str
    manifest: dict[str, Any]
    captured: tuple[Captured, ...]
    warnings: tuple[str, ...]


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
        Plain, async, a generator or an async generator; decorated or partial.
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
    with local_modules.shipped_by_value(modules):
        hints = _hints(function)
        items = collect(_roots(function, setup_function, hints, modules))
        content = {
            "modules": modules,  # first, so that their functions are met inside of them
            "function": function,
            "setup": setup_function,
            "hints": hints,
        }
        pickled = _dump(content, items)
        sources = _sources(items)
        known = {**environment_secrets(), **known_secrets}
        _refuse_secrets(pickled, sources, items, known, allow_secret)
        digest = digest_of({**content, "identity": dict(identity), "python": _python()})
        warnings = (*_size_warning(len(pickled), items), *_code_warnings(items, modules))
        captured = tuple(Captured(i.name, i.kind, i.size) for i in items if i.how != "signature")
    manifest = _manifest(function, sources, digest, captured)
    return Payload(pack(manifest, pickled), digest, manifest, captured, warnings)


def _manifest(
    function: Any, sources: dict[str, str], digest: str, captured: Sequence[Captured]
) -> dict[str, Any]:
    return {
        "format": 1,
        "python": _python(),
        "implementation": sys.implementation.name,
        "interpreter": sys.executable,
        "cloudpickle": cloudpickle.__version__,
        "name": _name(function),
        "kind": _kind(function),
        "doc": inspect.getdoc(_plain(function)),
        "sources": sources,
        "digest": digest,
        "captured": [asdict(value) for value in captured],
    }


def _python() -> str:
    return "{}.{}".format(*sys.version_info)


def _plain(function: Any) -> Any:
    """Return the function inside a partial, or the method behind a callable object."""
    while isinstance(function, (functools.partial, functools.partialmethod)):
        function = function.func
    if is_function(function) or is_class(function) or hasattr(function, "__name__"):
        return function
    return type(function).__call__


def _name(function: Any) -> str:
    named = _plain(function)
    own = named if named.__name__ != "__call__" else type(function)
    return str(own.__name__)


def _kind(function: Any) -> str:
    plain = _plain(function)
    if inspect.isasyncgenfunction(plain):
        return "asyncgen"
    if inspect.isgeneratorfunction(plain):
        return "generator"
    return "async" if inspect.iscoroutinefunction(plain) else "function"


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(_plain(function), include_extras=True)
    except Exception as error:  # annotations are code: they may raise anything
        raise CaptureError(
            f"the annotations of `{_name(function)}` cannot be resolved: {error}"
        ) from error


def _roots(
    function: Any, setup: Any, hints: dict[str, Any], modules: Mapping[str, types.ModuleType]
) -> list[Item]:
    root = Item(_name(function), function)
    setups = [Item(_name(setup), setup)] if setup is not None else []
    shipped = [Item(name, module, "module", root) for name, module in modules.items()]
    return [root, *setups, *shipped, Item("signature", hints, "signature", root)]


def _dump(content: dict[str, Any], items: list[Item]) -> bytes:
    buffer = LimitedBuffer(MAX_BYTES)
    pickler = PayloadPickler(buffer)
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


def _sources(items: list[Item]) -> dict[str, str]:
    """Return the sources of captured functions and classes; methods are in those of their class."""
    sources: dict[str, str] = {}
    for item in items:
        code = item.value
        if not (is_function(code) or is_class(code)):
            code = _plain(code) if item.how == "root" else None
        source = source_of(code) if code is not None and is_by_value(code) else None
        if source is not None and code is not None:
            sources.setdefault(code.__qualname__, source)
    return sources


def _code_warnings(items: list[Item], modules: Mapping[str, Any]) -> list[str]:
    found: dict[str, None] = {}
    for item in items:
        if isinstance(item.value, types.FunctionType) and is_by_value(item.value):
            source = source_of(item.value) or ""
            found |= dict.fromkeys(cell.warnings(source, item.value.__code__.co_firstlineno))
    for name in local_modules.missing({m for item in items for m in item.modules}, modules):
        user = next(i for i in items if name in {m.split(".")[0] for m in i.modules})
        owner = user if user.owner is None or user.kind == "function" else user.owner
        found[
            f"`{owner.name}` uses the module `{name}`, which lies beside the notebook where no "
            f"runner finds it; add local_python_modules={name}"
        ] = None
    return list(found)


def _refuse_secrets(
    pickled: bytes,
    sources: dict[str, str],
    items: list[Item],
    known: Mapping[str, str],
    allowed: Sequence[str],
) -> None:
    text = "\n".join(sources.values()).encode()
    findings = [
        f for content in (pickled, text) for f in (*scan(content), *scan_known(content, known))
    ]
    for finding in findings:
        holders = [item for item in items if _holds(item, finding.text)]
        refused = [item for item in holders if item.name not in allowed]
        if refused or not holders:
            raise SecretInPayloadError(_secret(refused or items[:1], finding, items[0]))


def _holds(item: Item, text: bytes) -> bool:
    if (is_function(item.value) or is_class(item.value)) and not is_by_value(item.value):
        return False
    if text in own_bytes(item.value):
        return True
    return is_by_value(item.value) and text in (source_of(item.value) or "").encode()


def _secret(holders: list[Item], finding: Finding, root: Item) -> str:
    holder = next((item for item in holders if item.kind not in ("function", "class")), holders[0])
    user = holder.owner.name if holder.owner is not None else root.name
    looks = "holds" if finding.label.startswith("the value of ") else "holds what looks like"
    if holder.kind in ("function", "class"):
        subject = f"`{holder.name}` {looks.replace('holds', 'contains')} {finding.label}"
    elif isinstance(holder.value, (str, bytes)) and looks != "holds":
        subject = f"`{holder.name}`, which `{user}` uses, looks like {finding.label}"
    else:
        subject = f"`{holder.name}`, which `{user}` uses, {looks} {finding.label}"
    return (
        f"{subject}; pass it with pass_env (or, in a later release, secrets=…), "
        f"or give allow_secret={holder.name} if it is meant to travel"
    )
