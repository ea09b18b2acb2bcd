"""A server that is only an image: captured like a function, though nothing of ours goes into it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fal_notebook.container import ContainerImage
from fal_notebook.exceptions import OptionError
from fal_notebook.payload import Captured, Payload
from fal_notebook.payload.items import Item
from fal_notebook.payload.secret_check import refuse_secrets
from fal_notebook.payload.secret_scan import environment_secrets
from fal_notebook.runner.envelope import pack
from fal_notebook.server_command import server_manifest

# What a Dockerfile begins with; no shell has such commands.
_FIRST = re.compile(r"(FROM|ARG)\s+\S")
# Builders take them in lower case too; Python's ``from x import y`` is another thing.
_ARG = re.compile(r"arg\s+\w", re.IGNORECASE)
_FROM = re.compile(r"from\s+(--\S+\s+)?[\w$][^\s\\]*(\s+as\s+\S+)?", re.IGNORECASE)
# With what one is begun by mistake.
_LIKE = re.compile(
    r"(FROM|ARG|RUN|COPY|ADD|ENV|WORKDIR|USER|EXPOSE|LABEL|VOLUME|CMD|ENTRYPOINT)(\s|$)"
)
_SYNTAX = re.compile(r"\s*#\s*syntax\s*=", re.IGNORECASE)


@dataclass(frozen=True)
class ServerImage:
    """An image that runs as it is, or as its `entrypoint` and `cmd` say."""

    name: str
    image: ContainerImage | str

    @property
    def text(self) -> str:
        """What there is to read: its Dockerfile, or its reference."""
        return self.image if isinstance(self.image, str) else self.image.dockerfile_str

    def capture(
        self,
        identity: Mapping[str, Any],
        allow_secret: Sequence[str],
        known_secrets: Mapping[str, str],
    ) -> Payload:
        """Return the payload: what describes the image, and no code.

        Raises
        ------
        SecretInPayloadError
            When the description holds what looks like a key.
        """
        content, sources = self._description().encode(), {self.name: self.text}
        known = {**environment_secrets(), **known_secrets}
        refuse_secrets(content, sources, [Item(self.name, self.text)], known, allow_secret)
        captured = (Captured(self.name, "image", len(content)),)
        manifest = server_manifest("image", self.name, self._description(), identity, captured)
        manifest["sources"] = sources
        return Payload(pack(manifest, content), manifest["digest"], manifest, captured, ())

    def _description(self) -> str:
        if isinstance(self.image, str):
            return self.image
        return json.dumps(self.image.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)


def is_dockerfile(cell: str) -> bool:
    """Say whether a cell is a Dockerfile by its first instruction."""
    after_arguments = next((line for line in _lines(cell) if not _ARG.match(line)), "")
    return bool(_FIRST.match(first_line(cell)) or _FROM.fullmatch(after_arguments))


def begins_like_dockerfile(cell: str) -> bool:
    """Say whether a cell that is no Dockerfile begins as if it were to be one."""
    return bool(_LIKE.match(first_line(cell)) or _SYNTAX.match(cell))


def first_line(cell: str) -> str:
    """Return a cell's first line that says something, "" where there are comments only."""
    return next(_lines(cell), "")


def _lines(cell: str) -> Iterator[str]:
    """Yield the lines that say something."""
    lines = (line.strip() for line in cell.splitlines())
    return (line for line in lines if line and not line.startswith("#"))


def of_reference(reference: str, **fields: Any) -> ContainerImage:
    """Return the image under a name, with the `entrypoint`, `cmd` and `registries` given.

    Raises
    ------
    OptionError
        As `ContainerImage` does.
    """
    return ContainerImage(f"FROM {reference}\n", **fields)


def with_commands(image: Any, commands: Mapping[str, Any]) -> Any:
    """Return an image that is started otherwise than it says itself.

    Raises
    ------
    OptionError
        When a command is no text or list of texts.
    """
    if not commands:
        return image
    if isinstance(image, str):
        return of_reference(image, **commands)
    checked = of_reference("scratch", **commands)
    return image.model_copy(update={name: getattr(checked, name) for name in commands})


def of_options(values: Mapping[str, Any]) -> ServerImage:
    """Return the server that the options of a deploy without a function describe.

    Raises
    ------
    OptionError
        When they do not say which image, port or name.
    """
    lacking = [name for name in ("image", "exposed_port", "name") if values.get(name) is None]
    if lacking:
        raise OptionError(
            f"without a function a deploy is that of an image, and {lacking[0]} is missing; write "
            " deploy(image='my-org/my-server', exposed_port=8000, name='my-server')"
        )
    return ServerImage(str(values["name"]), values["image"])
