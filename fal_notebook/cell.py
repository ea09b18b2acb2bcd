"""Pure analysis of a cell's source: its entry function, its names, what would fail in a runner.

The source is plain Python, as IPython's transformers leave it; running it is left to the shell.
"""

from __future__ import annotations

import ast
import posixpath
import re
import types
import warnings as python_warnings
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from fal_notebook.exceptions import CellError
from fal_notebook.relative_reads import path_of, relative_read

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_CHANGING = re.compile(
    "append(left)?|extend|insert|pop(item|left)?|remove|clear|update|setdefault|add|discard|"
    "sort|reverse"
)


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
        Functions defined at module level, in the order of their last definitions.
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


def analyse(
    source: str, entry: str | None = None, where: str = "the cell", also: Sequence[str] = ()
) -> Cell:
    """Return what the cell defines and imports, and which function is to be deployed.

    Parameters
    ----------
    source : str
        Plain Python source.
    entry : str, optional
        Name of the function to deploy; by default the last one defined at module level.
    where : str
        What errors call the source.
    also : sequence of str
        What else `entry` might have meant.

    Raises
    ------
    SyntaxError
        As Python itself raises it.
    CellError
        When there is no such function, or the cell awaits at its top level.
    """
    tree = _parse(source)
    _refuse_await(tree, where)
    nodes = list(_module_level(tree))
    functions = _last_of_each(node.name for node in nodes if isinstance(node, _FUNCTIONS))
    imported = _unique(name for node in nodes for name in _imports(node))
    defined = _unique(name for node in nodes for name in _bindings(node))
    if entry is None and not functions:
        raise CellError(f"{where} defines no function to deploy; add one with def or async def")
    if entry is not None and entry not in defined:
        raise _unknown(entry, where, (*also, *functions))
    return Cell(source, entry or functions[-1], functions, defined, imported)


def classes(source: str) -> tuple[str, ...]:
    """Return the module level's classes in the order of their last definitions, or raise.

    Errors are those of `analyse`.
    """
    tree = _parse(source)
    _refuse_await(tree, "the cell")
    names = _last_of_each(n.name for n in _module_level(tree) if isinstance(n, ast.ClassDef))
    if not names:
        raise CellError("the cell defines no class to deploy; add one that derives from fal.App")
    return names


def warnings(
    source: str,
    first_line: int = 1,
    captured: Mapping[str, Any] = MappingProxyType({}),
    files: Collection[str] = (),
) -> tuple[str, ...]:
    """Return one sentence per global that is written to and per relative file that is read.

    Parameters
    ----------
    source : str
        Source of a function or of a whole cell; text that does not parse gives no warnings.
    first_line : int
        The line at which `source` starts in its cell, for the sentences.
    captured : mapping
        The globals that the code uses, to find which of them it changes or reads as a path;
        also paths that are defaults of its parameters or variables of a function around it.
    files : collection of str
        What is in a runner's working folder.
    """
    try:
        tree = _parse(source)
    except SyntaxError:  # a lambda's source is a fragment of a line
        return ()
    found: dict[str, str] = {}
    for subject, sentence in _complaints(tree, "", first_line - 1, captured, files):
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


def _refuse_await(tree: ast.Module, where: str) -> None:
    for node in _module_level(tree):
        asynchronous = isinstance(node, ast.comprehension) and node.is_async
        if asynchronous or isinstance(node, (ast.Await, ast.AsyncFor, ast.AsyncWith)):
            line = f" (line {node.lineno})" if hasattr(node, "lineno") else ""
            raise CellError(
                f"{where} awaits at its top level{line}, which a deployed cell cannot do; "
                "await in another cell, or inside the function"
            )


def _unknown(name: str, where: str, names: Sequence[str]) -> CellError:
    """Return that a function or class is not defined there; `names` are those that are."""
    near = get_close_matches(name, names, n=1)
    defines = ", ".join(f"`{each}`" for each in names) or "no function"
    instead = f"did you mean `{near[0]}`?" if near else f"it defines {defines}"
    return CellError(f"{where} does not define `{name}`; {instead}")


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


def _last_of_each(names: Iterable[str]) -> tuple[str, ...]:
    return _unique(reversed(list(names)))[::-1]


def _complaints(
    tree: ast.AST,
    function: str,
    offset: int,
    captured: Mapping[str, Any],
    files: Collection[str],
) -> Iterator[tuple[str, str]]:
    """Yield sentences, each with its subject: of several about one, the first is enough."""
    for node in ast.iter_child_nodes(tree):
        inside, known = function, captured
        if isinstance(node, _FUNCTIONS):
            inside, known = node.name, _known_inside(node, captured)
        line = getattr(node, "lineno", 0) + offset
        for name in _written(node, captured) if function else ():
            yield (
                f"{function} writes {name}",
                f"`{function}` writes to the global `{name}` (line {line}); "
                "each runner has its own copy, which is lost when the runner stops",
            )
        name = _read_by_name(node) if function else ""
        if name and name not in captured:
            yield (
                f"{function} reads {name}",
                f"`{function}` takes the global `{name}` from globals() (line {line}), so it does "
                "not travel along; write its name alone",
            )
        path = None
        if function and isinstance(node, ast.Call):
            path = relative_read(node, captured)
        if path is not None and not _is_among(path, files):
            yield (
                f"{function} reads {path} in line {line}",
                f"`{function}` reads the relative file {path!r} (line {line}), "
                "which is not in a runner's working folder; name it in app_files, read it in a "
                "cell and use its contents, or give an absolute path",
            )
        yield from _complaints(node, inside, offset, known, files)


def _is_among(path: str, files: Collection[str]) -> bool:
    """Say whether a relative path is that of one of these files, or of a folder of them."""
    path = posixpath.normpath(path)
    beginning, more, _ = path.partition("{…}")
    beginning += "" if more else "/"
    return path in files or any(file.startswith(beginning) for file in files)


def _known_inside(
    function: ast.FunctionDef | ast.AsyncFunctionDef, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what is known in a function: not what it binds more than once, but its defaults."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    parameters = [*positional, *arguments.kwonlyargs]
    without = len(positional) - len(arguments.defaults)
    defaults = [*[None] * without, *arguments.defaults, *arguments.kw_defaults]
    inside = dict(known)
    for parameter, default in zip(parameters, defaults, strict=True):
        path = path_of(default, known) if default is not None else None
        # The value of `p=FILE` is among those given: here that is a name of another scope.
        value = known.get(parameter.arg) if default is not None and path is None else path
        inside[parameter.arg] = value
    nodes = list(_module_level(function))
    bound = [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    for name in bound:
        inside.pop(name, None)
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) if bound.count(name) == 1:
                inside[name] = path_of(node.value, inside)
    return inside


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
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "globals()":
            key = node.slice
            yield str(key.value) if isinstance(key, ast.Constant) else ast.unparse(node)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        value = captured.get(owner.id) if isinstance(owner, ast.Name) else None
        changing = _CHANGING.fullmatch(node.func.attr)
        if changing and isinstance(value, (list, dict, set, bytearray, deque)):
            yield ast.unparse(owner)


def _read_by_name(node: ast.AST) -> str:
    """Return the name of a global that is looked up in ``globals()``, "" where none is."""
    match node:
        case ast.Subscript(ast.Call(ast.Name("globals"), []), ast.Constant(str(name)), ast.Load()):
            return name
    return ""


def _is_data(value: Any) -> bool:
    return value is not None and not isinstance(value, types.ModuleType)
