"""Relative files that a call in captured code reads, as far as the source and its names say."""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Mapping
from pathlib import PurePath, PurePosixPath, PureWindowsPath
from typing import Any

_Path = str | PurePath
_READERS = re.compile(r"read_\w+|load|loadtxt|genfromtxt|fromfile|open|imread|open_dataset")
_BY_NAME = ("os.listdir", "os.scandir", "os.walk", "glob.glob", "glob.iglob", "sqlite3.connect")
# What these call their first parameter.
_KEYWORDS = ("file", "filename", "fname", "path", "io", "filepath_or_buffer", "path_or_buf")
_LOOKS_LIKE_FILE = re.compile(r"[^\s*?<>|]+\.\w{1,8}")


def relative_read(call: ast.Call, known: Mapping[str, Any]) -> str | None:
    """Return the relative path that the call reads, if it does and the path is decidable.

    Parameters
    ----------
    call : ast.Call
        Any call.
    known : mapping
        Values of names, to be used where a path is made of them.
    """
    function = call.func
    if isinstance(function, ast.Name):
        opens = function.id == "open" and not _writes(call.args[1:2], call)
        return _relative(_first(call, known), any_name=True) if opens else None
    if not isinstance(function, ast.Attribute):
        return None
    if ast.unparse(function) in _BY_NAME:
        return _relative(_first(call, known), any_name=True)
    owner = path_of(function.value, known)
    if isinstance(owner, PurePath) and function.attr in ("read_text", "read_bytes", "open"):
        writes = function.attr == "open" and _writes(call.args[:1], call)
        return None if writes else _relative(owner, any_name=True)
    if not _READERS.fullmatch(function.attr) or _opens_to_write(function.attr, call):
        return None
    return _relative(_first(call, known), any_name=False)


def path_of(node: ast.expr, known: Mapping[str, Any]) -> _Path | None:
    """Return the text or path that an expression of literals and known names makes."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        value = known.get(node.id)
        return value if isinstance(value, (str, PurePath)) else None
    if isinstance(node, ast.JoinedStr):
        return _template(node)
    if isinstance(node, ast.BinOp):
        return _joined(node.op, path_of(node.left, known), path_of(node.right, known))
    if isinstance(node, ast.Attribute) and node.attr == "parent":
        owner = path_of(node.value, known)
        return owner.parent if isinstance(owner, PurePath) else None
    return _called(node, known) if isinstance(node, ast.Call) else None


def _template(text: ast.JoinedStr) -> str | None:
    """Return what an f-string says, with ``{…}`` for its values, if it begins with a text."""
    words = [str(part.value) if isinstance(part, ast.Constant) else "{…}" for part in text.values]
    return "".join(words) if words and words[0] != "{…}" else None


def _joined(operator: ast.operator, left: _Path | None, right: _Path | None) -> _Path | None:
    if isinstance(operator, ast.Add) and left and isinstance(left, str):
        return left + right if isinstance(right, str) else f"{left}{{…}}"
    if left is None or right is None or not isinstance(operator, ast.Div):
        return None
    if isinstance(left, str) and isinstance(right, str):
        return None  # an error when it runs
    return PurePosixPath(left) / right


def _called(call: ast.Call, known: Mapping[str, Any]) -> _Path | None:
    """Return what ``Path(…)``, ``path.joinpath(…)`` or ``os.path.join(…)`` makes."""
    found = [path_of(argument, known) for argument in call.args]
    parts = [part for part in found if part is not None]
    if not parts or len(parts) < len(found):
        return None
    if isinstance(call.func, ast.Attribute) and call.func.attr == "joinpath":
        owner = path_of(call.func.value, known)
        return PurePosixPath(owner, *parts) if isinstance(owner, PurePath) else None
    name = ast.unparse(call.func)
    if name.endswith("path.join"):
        return posixpath.join(*map(str, parts))
    return PurePosixPath(*parts) if name.split(".")[-1] == "Path" else None


def _first(call: ast.Call, known: Mapping[str, Any]) -> _Path | None:
    named = [keyword.value for keyword in call.keywords if keyword.arg in _KEYWORDS]
    return path_of([*call.args, *named][0], known) if call.args or named else None


def _opens_to_write(name: str, call: ast.Call) -> bool:
    return name == "open" and _writes(call.args[1:2], call)


def _writes(mode: list[ast.expr], call: ast.Call) -> bool:
    modes = [*mode, *(k.value for k in call.keywords if k.arg == "mode")]
    return any(isinstance(m, ast.Constant) and set(str(m.value)) & set("wax") for m in modes)


def _relative(path: _Path | None, *, any_name: bool) -> str | None:
    value = str(path or "")
    # An empty text, as defaults often are, names no file.
    if value in ("", ".") or "://" in value or value.startswith(("~", ":", "data:")):
        return None
    if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute():
        return None
    sure = any_name or isinstance(path, PurePath)
    return value if sure or _LOOKS_LIKE_FILE.fullmatch(value) else None
