"""What a deploy sends beside the payload: files, the credentials of an image, the target."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

from fal_notebook import app_files, settings
from fal_notebook.build_context import pack
from fal_notebook.container import ContainerImage
from fal_notebook.exceptions import OptionError
from fal_notebook.options import Options
from fal_notebook.registries import calls, from_environment, to_send

_LOCAL, _DOCKER = settings.TARGETS


@dataclass(frozen=True)
class ImageRequest:
    """The files as an archive, empty without any, and the credentials.

    They are the build context of an image, or `app_files`, whose names are `files`: an app has
    one of the two.
    """

    context: bytes = b""
    files: tuple[str, ...] = ()
    credentials: dict[str, Any] = field(default_factory=dict, repr=False)
    image: ContainerImage | None = field(default=None, repr=False)

    def renewed(self, host: str) -> dict[str, Any]:
        """Return the credentials with a new password of a registry that refused the one it got.

        Nothing when no function of this kernel gives that; the gateway asks commands itself.

        Raises
        ------
        OptionError
            When the function fails.
        """
        if self.image is None or host not in calls(self.image.registries):
            return {}
        return _credentials(self.image)

    @property
    def told(self) -> list[str]:
        """What a dry run says of `files`."""
        more = f" and {len(self.files) - 5} more" if len(self.files) > 5 else ""
        return [f"app_files: {', '.join(self.files[:5])}{more}"] if self.files else []

    @property
    def manifest(self) -> dict[str, str]:
        """What the manifest says of the files: their archive's SHA-256."""
        return {"context": hashlib.sha256(self.context).hexdigest()} if self.context else {}

    @property
    def key(self) -> dict[str, Any]:
        """What takes part in the digest, so that a changed file is a new revision."""
        return {**self.manifest, "files": self.files} if self.files else self.manifest


def of(options: Options, folder: str) -> ImageRequest:
    """Return what is sent for the image of an app, or as its `app_files`; nothing without both.

    Parameters
    ----------
    folder : str
        Where relative folders of files begin: that of the notebook.

    Raises
    ------
    OptionError
        When the files cannot be read, or are too large.
    """
    image = options.image
    if not isinstance(image, ContainerImage):
        files = app_files.pack(options, folder)
        return ImageRequest(files.archive, files.names)
    return ImageRequest(pack(image, folder), credentials=_credentials(image), image=image)


def notices(options: Options) -> list[str]:
    """Return what of an image has no meaning where it runs a function."""
    image = options.image
    if not isinstance(image, ContainerImage) or image.cmd is None:
        return []
    return ["cmd is what an image runs as a server; this one runs the function, so it is not used"]


def target(given: str | None, options: Options) -> str:
    """Return where an app runs: one with an image in a container, unless the cell says otherwise.

    Raises
    ------
    OptionError
        When the cell gives an image and ``target=local``.
    """
    if options.image is None:
        return given or settings.target()
    if given == _LOCAL:
        raise OptionError(
            "image and target=local exclude each other: images, those of a Dockerfile too, run on "
            "the docker target; write target=docker or leave target out"
        )
    return _DOCKER


def _credentials(image: ContainerImage) -> dict[str, Any]:
    registries = to_send(image.registries, os.environ)
    secrets = {name: _value(value.get_secret_value()) for name, value in image.secrets.items()}
    given = {"registries": registries, "secrets": secrets}
    return {name: values for name, values in given.items() if values}


def _value(text: str) -> str:
    """Return what the environment has under ``$NAME``, else the text: the gateway may know it."""
    return from_environment(text, os.environ)
