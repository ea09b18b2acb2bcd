"""Source text of functions and classes of a cell or a local module, and of such modules.

`inspect.getsource` is no use for cells: it unwraps decorators and finds no class of ``__main__``.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import os
import textwrap
import tokenize
import types
import weakref
from typing import Any

_read: weakref.WeakKeyDictionary[types.FunctionType, tuple[types.CodeType, str | None]]
_read = weakref.WeakKeyDictionary()


def source_of(value: Any) -> str | None:
    """Return the dedented source of a function or class, that of a module, None without one."""
    if isinstance(value, types.ModuleType):
        return "".join(_lines(getattr(value, "__file__", None) or "")) or None
    value = getattr(value, "__func__", value)
    if isinstance(value, types.FunctionType):
        return _function_source(value)
    if isinstance(value, functools.partial):
        return source_of(value.func)
    return _class_source(value) if isinstance(value, type) else None


def first_line_of(function: types.FunctionType) -> int:
    """Return the line of its cell at which the function's source starts."""
    return function.__code__.co_firstlineno


def _lines(filename: str) -> list[str]:
    if os.path.isfile(filename):
        linecache.checkcache(filename)  # it may have been edited since
    return linecache.getlines(filename)


def _function_source(function: types.FunctionType) -> str | None:
    """Return what the file said when the function was first seen with this code."""
    code, text = _read.get(function, (None, None))
    if code is not function.__code__:
        code = function.__code__
        text = _block(code.co_filename, code.co_firstlineno)
        _read[function] = code, text
    return text


def _block(filename: str, line: int) -> str | None:
    lines = _lines(filename)[line - 1 :]
    try:
        block = inspect.getblock(lines) if lines else []
    except (SyntaxError, tokenize.TokenError, IndentationError):
        return None
    return textwrap.dedent("".join(block)) or None


def _class_source(cls: type) -> str | None:
    """Find the class by its name in the file in which its methods are defined."""
    for member in vars(cls).values():
        function = getattr(member, "__func__", member)
        if isinstance(function, types.FunctionType) and function.__module__ == cls.__module__:
            found = _class_in(function.__code__.co_filename, cls.__qualname__)
            if found is not None:
                return found
    return None


def _class_in(filename: str, qualname: str) -> str | None:
    text = "".join(_lines(filename))
    try:
        body: list[ast.AST] = [ast.parse(text)]
    except SyntaxError:
        return None
    for part in qualname.replace("<locals>.", "").split("."):
        body = [node for parent in body for node in _definitions(parent, part)]
    if not body or not isinstance(body[-1], ast.ClassDef):
        return None
    node = body[-1]
    first = min((d.lineno for d in node.decorator_list), default=node.lineno)
    lines = text.splitlines(keepends=True)[first - 1 : node.end_lineno]
    return textwrap.dedent("".join(lines))


def _definitions(parent: ast.AST, name: str) -> list[ast.AST]:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [n for n in ast.walk(parent) if isinstance(n, kinds) and n.name == name]
