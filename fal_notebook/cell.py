"""Pure analysis of a cell's source: its entry function, its names, what would fail in a runner.

The source is plain Python, as IPython's transformers leave it; running it is left to the shell.
"""

from __future__ import annotations

import ast
import re
import types
import warnings as python_warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any

from fal_notebook.exceptions import CellError

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_READERS = re.compile(r"read_\w+|load|loadtxt|genfromtxt|fromfile|open|imread|open_dataset")
_CHANGING = re.compile(
    "append(left)?|extend|insert|pop(item|left)?|remove|clear|update|setdefault|add|discard|"
    "sort|reverse"
)
_LOOKS_LIKE_FILE = re.compile(r"[^\s*?<>|]+\.\w{1,8}")


@dataclass(frozen=True)
class Cell:
    """What a cell's source says about itself.

    Attributes
    ----------
    source : str
        The Python source that was analysed.
    entry : str
        Name of the function to deploy.
    functions : tuple of str
        Functions defined at module level, in order.
    defined : tuple of str
        All names that the cell binds at module level, imports excepted, in order.
    imported : tuple of str
        Names bound by import statements, in order (``np`` for ``import numpy as np``).
    """

    source: str
    entry: str
    functions: tuple[str, ...]
    defined: tuple[str, ...]
    imported: tuple[str, ...]


def analyse(source: str, entry: str | None = None) -> Cell:
    """Return what the cell defines and imports, and which function is to be deployed.

    Parameters
    ----------
    source : str
        Plain Python source.
    entry : str, optional
        Name of the function to deploy; by default the last one defined at module level.

    Raises
    ------
    SyntaxError
        As Python itself raises it.
    CellError
        When there is no such function, or the cell awaits at its top level.
    """
    tree = _parse(source)
    _refuse_await(tree)
    nodes = list(_module_level(tree))
    functions = _unique(node.name for node in nodes if isinstance(node, _FUNCTIONS))
    imported = _unique(name for node in nodes for name in _imports(node))
    defined = _unique(name for node in nodes for name in _bindings(node))
    return Cell(source, _entry(entry, functions, defined), functions, defined, imported)


def classes(source: str) -> tuple[str, ...]:
    """Return the classes that are defined at module level, in order; errors as of `analyse`."""
    tree = _parse(source)
    _refuse_await(tree)
    names = _unique(n.name for n in _module_level(tree) if isinstance(n, ast.ClassDef))
    if not names:
        raise CellError("the cell defines no class to deploy; add one that derives from fal.App")
    return names


def warnings(
    source: str, first_line: int = 1, captured: Mapping[str, Any] = MappingProxyType({})
) -> tuple[str, ...]:
    """Return one sentence per global that is written to and per relative file that is read.

    Parameters
    ----------
    source : str
        Source of a function or of a whole cell; text that does not parse gives no warnings.
    first_line : int
        The line at which `source` starts in its cell, for the sentences.
    captured : mapping
        The globals that the code uses, to find which of them it changes or reads as a path.
    """
    try:
        tree = _parse(source)
    except SyntaxError:  # a lambda's source is a fragment of a line
        return ()
    found: dict[str, str] = {}
    for subject, sentence in _complaints(tree, "", first_line - 1, captured):
        found.setdefault(subject, sentence)
    return tuple(found.values())


def _parse(source: str) -> ast.Module:
    with python_warnings.catch_warnings():  # the shell shows them when it runs the cell
        python_warnings.simplefilter("ignore")
        tree = ast.parse(source)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        compile(source, "<cell>", "exec", flags=flags, dont_inherit=True)
    return tree


def _module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below `tree` that are executed in its own scope."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, _SCOPES):
            yield from _module_level(node)


def _refuse_await(tree: ast.Module) -> None:
    for node in _module_level(tree):
        asynchronous = isinstance(node, ast.comprehension) and node.is_async
        if asynchronous or isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith)):
            line = f" (line {node.lineno})" if hasattr(node, "lineno") else ""
            raise CellError(
                f"the cell awaits at its top level{line}, which a deployed cell cannot do; "
                "await in another cell, or inside the function"
            )


def _entry(entry: str | None, functions: tuple[str, ...], defined: tuple[str, ...]) -> str:
    names = ", ".join(f"`{name}`" for name in functions) or "no function"
    if entry is None and not functions:
        raise CellError("the cell defines no function to deploy; add one with def or async def")
    if entry is None:
        return functions[-1]
    if entry not in defined:
        raise CellError(f"the cell does not define `{entry}`; it defines {names}")
    return entry


def _imports(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        for alias in node.names:
            yield alias.asname or alias.name.split(".")[0]


def _bindings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _complaints(
    tree: ast.AST, function: str, offset: int, captured: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield sentences, each with its subject: of several about one, the first is enough."""
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, _FUNCTIONS) else function
        line = getattr(node, "lineno", 0) + offset
        for name in _written(node, captured) if function else ():
            yield (
                f"{function} writes {name}",
                f"`{function}` writes to the global `{name}` (line {line}); "
                "each runner has its own copy, which is lost when the runner stops",
            )
        path = None
        if function and isinstance(node, ast.Call):
            path = _relative_read(_with_paths(node, captured))
        if path is not None:
            yield (
                f"{function} reads {path} in line {line}",
                f"`{function}` reads the relative file {path!r} (line {line}), "
                "which is not in a runner's working folder; read it in a cell and use its "
                "contents, or give an absolute path",
            )
        yield from _complaints(node, inside, offset, captured)


def _written(node: ast.AST, captured: Mapping[str, Any]) -> Iterator[str]:
    """Yield the globals that a node writes to: declared as such, or captured data it changes."""
    if isinstance(node, ast.Global):
        yield from node.names
    elif isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load):
        target: ast.expr = node
        while isinstance(target, (ast.Subscript, ast.Attribute)):
            target = target.value
        if isinstance(target, ast.Name) and _is_data(captured.get(target.id)):
            yield target.id
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        value = captured.get(owner.id) if isinstance(owner, ast.Name) else None
        changing = _CHANGING.fullmatch(node.func.attr)
        if changing and isinstance(value, (list, dict, set, bytearray, deque)):
            yield ast.unparse(owner)


def _is_data(value: Any) -> bool:
    return value is not None and not isinstance(value, (types.ModuleType, type))


def _with_paths(call: ast.Call, captured: Mapping[str, Any]) -> ast.Call:
    """Return the call with a captured text as its first argument in place of its name."""
    path = call.args[0] if call.args else None
    if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Call):
        inner = _with_paths(call.func.value, captured)
        return ast.Call(ast.Attribute(inner, call.func.attr), call.args, call.keywords)
    if not isinstance(path, ast.Name) or not isinstance(captured.get(path.id), str):
        return call
    text = ast.Constant(captured[path.id])
    return ast.Call(call.func, [text, *call.args[1:]], call.keywords)


def _relative_read(call: ast.Call) -> str | None:
    """Return the constant relative path that the call reads, if it does."""
    function = call.func
    if isinstance(function, ast.Name):
        opens = function.id == "open" and not _writes(call)
        return _relative(call, any_name=True) if opens else None
    if not isinstance(function, ast.Attribute):
        return None
    if function.attr in ("read_text", "read_bytes", "open") and _is_path(function.value):
        assert isinstance(function.value, ast.Call)
        return _relative(function.value, any_name=True)
    return _relative(call, any_name=False) if _READERS.fullmatch(function.attr) else None


def _is_path(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Path"


def _writes(call: ast.Call) -> bool:
    modes = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
    return any(isinstance(m, ast.Constant) and set(str(m.value)) & set("wax") for m in modes)


def _relative(call: ast.Call, *, any_name: bool) -> str | None:
    value = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else None
    if not isinstance(value, str) or "://" in value or value.startswith(("~", "data:")):
        return None
    if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute():
        return None
    return value if any_name or _LOOKS_LIKE_FILE.fullmatch(value) else None
