"""A magic line becomes a name and a dict of values; whether they are options is said elsewhere.

shlex is not enough: it takes the quotes out of ``["a","b"]`` and splits a dict. So words and lists
are cut only outside of quotes and brackets, and each value is read by `ast.literal_eval`; nothing
is ever evaluated.
"""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fal_notebook.exceptions import OptionError
from fal_notebook.options import option_help

_TYPES = {item.name: item.type for item in option_help()}
_LISTS = frozenset(name for name, kind in _TYPES.items() if "list[" in kind)
# Read as they stand, or python_version=3.10 would be the number 3.1.
_TEXTS = frozenset(name for name, kind in _TYPES.items() if kind.startswith("str"))
_VARIABLES = frozenset({"image", "metadata", "setup_function"})
_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "none": None}
_QUOTE_IT = "; a reference to an image contains '/' or ':' or is quoted"

# Of a line that is refused so much is said, which may have been cut from a file.
_LONGEST_SHOWN = 200

_PAIR = re.compile(r"(?:--)?([A-Za-z_][\w-]*)=(.*)", re.DOTALL)
_DICT = re.compile(r"""\{\s*["']""")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
# Before anything else, as in pandas>=2,<3, the comma belongs to the requirement.
_NEW_REQUIREMENT = re.compile(r"""\s*(?:[\w./$"'{\[]|~/)""")
_REFERENCE = re.compile(
    r"\$\$|\{\{|\}\}"
    r"|\$\{\s*(?P<shell>[A-Za-z_][^{}]*?)\s*\}"
    r"|\{\s*(?P<braces>[A-Za-z_][^{}]*?)\s*\}"
    r"|\$(?P<dollar>[A-Za-z_]\w*)"
)


def parse_line(line: str, namespace: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Parse ``[NAME] key=value …``.

    Parameters
    ----------
    line : str
        What stands behind the magic's name.
    namespace : mapping
        The notebook's variables, for ``{var}``, ``$var`` and, where a value has to be an object
        (image, metadata, setup_function), a bare name.

    Returns
    -------
    name : str or None
        The word in front, if it is no ``key=value``.
    values : dict
        Values by option name, ``-`` written as ``_``; not validated.

    Raises
    ------
    OptionError
        One sentence with a hint.
    """
    words = _split(line, lambda _, char: char.isspace())
    words = [word for word in words if word]
    name = None
    if words and not _PAIR.fullmatch(words[0]) and words[0][0] not in "-=":
        name = str(expand(_scalar(words.pop(0), is_text=True), namespace))
    values: dict[str, Any] = {}
    for key, text in map(_pair, words):
        if key in values:
            raise OptionError(f"{key} is given twice; give it once")
        values[key] = _value(key, text, namespace)
    if name is not None and "name" in values:
        raise OptionError(f"the name is given twice, as {name} and as name=; give it once")
    return name, values


def _pair(word: str) -> tuple[str, str]:
    match = _PAIR.fullmatch(word)
    if match is None:
        raise OptionError(f"{word!r} is not of the form key=value; {_hint(word)}")
    key, text = match[1].replace("-", "_"), match[2]
    if not text:
        raise OptionError(f"{key}= has no value; write key=value without spaces around '='")
    return key, text


def _hint(word: str) -> str:
    if word.startswith("="):
        return "there are no spaces around '='"
    if word.startswith("-"):
        return f"write {word}=true to switch an option on"
    return "no spaces around '=', the app's name first, and a value with spaces in quotes"


def _value(key: str, text: str, namespace: Mapping[str, Any]) -> Any:
    if key in _VARIABLES and text.isidentifier() and text.lower() not in _CONSTANTS:
        return _variable(text, namespace, _QUOTE_IT if key == "image" else "")
    if key in _LISTS and text.lower() not in _CONSTANTS:
        return _list(key, text, namespace)
    scalar = _scalar(text, is_text=key in _TEXTS)
    if key not in _TEXTS and _DICT.match(text):
        return scalar  # if it is none, its refusal shows it as it was written
    return expand(scalar, namespace)


def _list(key: str, text: str, namespace: Mapping[str, Any]) -> Any:
    bracketed = _in_brackets(text)
    items = expand(_items(key, text), namespace)
    if bracketed or len(items) > 1:
        return items
    # A variable may hold the whole list, and a machine type may stand alone.
    alone = isinstance(items[0], list | tuple) or _TYPES[key].startswith("str")
    return items[0] if alone else items


def _items(key: str, text: str) -> list[Any]:
    """Return the items of ``a,b`` or ``[a,b]``; quotes around an item are optional."""
    if not _in_brackets(text):
        return [_scalar(item, is_text=True) for item in _split_list(key, text)]
    literal = _literal(text)
    if isinstance(literal, list | tuple):
        return list(literal)
    # One level of layers is all there is; going deeper would only exhaust the stack.
    return [
        [_scalar(inner, is_text=True) for inner in _split_list(key, item[1:-1])]
        if _in_brackets(item)
        else _scalar(item, is_text=True)
        for item in _split_list(key, text[1:-1])
    ]


def _in_brackets(text: str) -> bool:
    return text[:1] in ("[", "(") and text[-1:] in ("]", ")") and not list(outside(text))


def _split_list(key: str, text: str) -> list[str]:
    def is_cut(index: int, char: str) -> bool:
        if char != ",":
            return False
        return key != "requirements" or _NEW_REQUIREMENT.match(text, index + 1) is not None

    return [item.strip() for item in _split(text, is_cut)]


def _scalar(text: str, *, is_text: bool = False) -> Any:
    """Return the literal that `text` is, else `text`; for a text option only quotes are read."""
    if text.lower() in _CONSTANTS and (not is_text or text.lower() == "none"):
        return _CONSTANTS[text.lower()]
    if is_text and text[:1] not in ("'", '"'):
        return text
    return _literal(text)


def _literal(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\.pyc$" is a regular expression, not a mistake
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return text


def expand(value: Any, namespace: Mapping[str, Any]) -> Any:
    """Put the variables into a text or the items of a list that it names, as ``{var}`` or ``$var``.

    Dicts stay as they are: an OpenAPI document is full of ``$ref`` and ``{id}``.
    """
    if isinstance(value, list):
        return [expand(item, namespace) for item in value]
    if not isinstance(value, str):
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole is not None and whole.lastgroup is not None:
        return _variable(whole[whole.lastgroup], namespace)
    return _REFERENCE.sub(lambda match: _substitute(match, namespace), value)


def _substitute(match: re.Match[str], namespace: Mapping[str, Any]) -> str:
    if match.lastgroup is None:
        return match[0][0]  # a doubled sign stands for itself
    name = match[match.lastgroup]
    value = _variable(name, namespace)
    kind: Any = type(value)
    if not isinstance(value, int | float) and kind.__str__ is object.__str__:
        raise OptionError(
            f"the variable '{name}' is a {kind.__name__}, which has no text to stand in "
            f"{match.string!r}; assign what you mean of it to a variable of its own"
        )
    return str(value)


def _variable(name: str, namespace: Mapping[str, Any], hint: str = "") -> Any:
    if not name.isidentifier():
        raise OptionError(f"{{{name}}} is not a variable's name; assign it to one and use that")
    if name not in namespace:
        own = ": that is Python's own; assign it to one" if hasattr(builtins, name) else ""
        raise OptionError(f"the notebook has no variable '{name}'{own or hint}")
    return namespace[name]


def _split(text: str, is_cut: Callable[[int, str], bool]) -> list[str]:
    """Cut `text` at the characters outside of quotes and brackets that `is_cut` chooses."""
    cuts = [index for index, char in outside(text) if is_cut(index, char)]
    return [
        text[start:end]
        for start, end in zip([0, *(c + 1 for c in cuts)], [*cuts, len(text)], strict=True)
    ]


def outside(text: str) -> Iterator[tuple[int, str]]:
    """Yield index and character of what stands outside of quotes and brackets."""
    quote, escaped, closing = "", False, [""]
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
        elif char in "\"'":
            quote, escaped = char, False
        elif char in _CLOSING:
            closing.append(_CLOSING[char])
        elif char in ")]}":
            if char != closing.pop():
                raise OptionError(f"{char!r} closes nothing in: {_shown(text)}")
        elif len(closing) == 1:
            yield index, char
    if quote or len(closing) > 1:
        missing = quote or closing[-1]
        raise OptionError(f"{missing!r} is missing in: {_shown(text)}")


def _shown(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
