"""The value that says which container image an app runs in; building it is left to others."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)

from fal_notebook.exceptions import OptionError
from fal_notebook.option_errors import refusals, unknown_option
from fal_notebook.option_types import Flag, PathText, Text, option

_NO_EFFECT = "accepted for fal's sake, without effect"
_COMMAND = "one text or a list of texts"
# What shlex says of a text that it cannot cut.
_UNCUT = {
    "No closing quotation": "a quote that has no end",
    "No escaped character": "a backslash with nothing behind it",
}


def _dockerfile(text: str) -> str:
    text = text.removeprefix("\ufeff")  # Windows' editors write one
    if not any(
        line.split()[:1] and line.split()[0].upper() == "FROM" for line in text.splitlines()
    ):
        raise ValueError("the text of a Dockerfile, with a FROM line")
    return text


def _words(text: str) -> str:
    """Refuse what the engine cannot cut into words; it stays the text that it is."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(
            f"it is cut into words as a shell does, and has {_UNCUT.get(str(error), error)}; "
            "correct that, or give a list of texts, which is not cut"
        ) from None
    if not words:
        raise ValueError("there is no word in it; write a command, or leave it out")
    return text


_Command = Annotated[Text, AfterValidator(_words)]


def _named(pattern: str, allowed: str) -> AfterValidator:
    """Return what refuses a dict with a name that the builder would not understand."""

    def checked(values: dict[str, Any]) -> dict[str, Any]:
        for name in values:
            if not re.fullmatch(pattern, name, re.ASCII):
                raise ValueError(f"a name is {allowed}, and {name!r} is none")
        return values

    return AfterValidator(checked)


class Registry(BaseModel):
    """Credentials for one registry, see `registries`; the password is in no pickle.

    It may be ``$NAME`` (of the environment, or a stored secret), a command that prints it (a list
    of texts, run by the gateway at each use) or a callable that returns it (called here at each
    deploy).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    username: Text
    password: (
        Annotated[SecretStr, Field(min_length=1)]
        | Annotated[list[Text], Field(min_length=1)]
        | Callable[[], str]
    )

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the password out of every pickle."""
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "password": SecretStr("")}}


class ContainerImage(BaseModel):
    """A container image, described by a Dockerfile and what its build needs.

    Credentials (`registries`, `secrets`) are left out of dumps and of `repr`, and their values out
    of pickles, so that an image can travel with a payload.

    Raises
    ------
    OptionError
        When a field is unknown or of the wrong type; one sentence, without credentials.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    dockerfile_str: Annotated[str, AfterValidator(_dockerfile)] = option(
        None, "text of the Dockerfile", "the text of a Dockerfile"
    )
    build_args: Annotated[
        dict[str, str], _named(r"[A-Za-z_]\w*", "made of letters, digits and '_'")
    ] = option({}, "build arguments", "a dict of text to text")
    registries: dict[str, Registry] = option(
        {},
        "credentials for registries",
        "a dict of host to {'username': …, 'password': …}, both given; the password is a text, "
        "'$NAME', a command as a list, or a callable",
        exclude=True,
    )
    secrets: Annotated[
        dict[str, SecretStr], _named(r"[\w.-]+", "made of letters, digits, '_', '-' and '.'")
    ] = option({}, "secrets of the build", "a dict of name to value, both text", exclude=True)
    entrypoint: _Command | list[str] | None = option(None, "entry point", _COMMAND)
    cmd: _Command | list[str] | None = option(None, "command", _COMMAND)
    context_dir: PathText | None = option(
        None, "folder of the build context (unset: the working folder)", "a path"
    )
    dockerignore: list[str] | None = option(
        None, "patterns left out of the context", "a list of patterns as in .dockerignore"
    )
    dockerignore_path: PathText | None = option(
        None, "file with patterns left out of the context", "a path"
    )
    builder: str | None = option(None, _NO_EFFECT, "text")
    compression: str = option("gzip", _NO_EFFECT, "text")
    force_compression: Flag = option(False, _NO_EFFECT, "true or false")
    use_isolate: Flag | None = option(None, _NO_EFFECT, "true or false")

    def __init__(self, dockerfile_str: str, **fields: Any) -> None:
        unknown = [name for name in fields if name not in type(self).model_fields]
        if unknown:
            raise OptionError(
                f"ContainerImage: {unknown_option(unknown[0], type(self).model_fields)}"
            )
        values = {"dockerfile_str": dockerfile_str, **fields}
        try:
            super().__init__(**values)
        except ValidationError as error:
            sentences = "; ".join(refusals(error, type(self), values))
            raise OptionError(f"ContainerImage: {sentences}") from None

    @classmethod
    def from_dockerfile_str(cls, text: str, **fields: Any) -> ContainerImage:
        """Return the image that the text of a Dockerfile describes."""
        return cls(text, **fields)

    @classmethod
    def from_dockerfile(cls, path: str | os.PathLike[str], **fields: Any) -> ContainerImage:
        """Return the image that a Dockerfile describes; the file is read now."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"cannot read the Dockerfile {os.fspath(path)}: {error}") from None
        return cls(text, **fields)

    def add_dockerignore(
        self,
        patterns: Sequence[str] | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> ContainerImage:
        """Set what is left out of the build context, by exactly one of patterns and a file.

        fal's method changes the image and is called as a statement, so this one does too; it also
        returns the image.
        """
        if (patterns is None) == (path is None):
            raise OptionError("add_dockerignore takes exactly one of patterns and path")
        new = {"dockerignore": patterns} if path is None else {"dockerignore_path": path}
        checked = ContainerImage("FROM scratch", **new)
        for name in new:
            self.__dict__[name] = getattr(checked, name)
            self.__pydantic_fields_set__.add(name)
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the values of secrets out of every pickle; `Registry` does so for passwords."""
        state = super().__getstate__()
        emptied = {name: SecretStr("") for name in self.secrets}
        return {**state, "__dict__": {**state["__dict__"], "secrets": emptied}}


def image_value(value: Any) -> Any:
    """Turn a stored image (a dict) into a `ContainerImage`; leave anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    fields = {str(name): field for name, field in value.items()}
    try:
        return ContainerImage(fields.pop("dockerfile_str", None), **fields)
    except OptionError as error:
        raise ValueError(str(error)) from None
