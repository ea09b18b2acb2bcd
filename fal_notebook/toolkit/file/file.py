"""`File`: content in the gateway's storage, known by its URL; as input also any URL."""

from __future__ import annotations

import asyncio
import functools
import mimetypes
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from zipfile import ZipFile

from pydantic import BaseModel, Field, PrivateAttr, model_validator

from fal_notebook import media_types
from fal_notebook.ref import get_current_app
from fal_notebook.request_context import lifecycle_preference
from fal_notebook.toolkit import upload as storage
from fal_notebook.toolkit.fields import shown_as
from fal_notebook.toolkit.utils.download_utils import download_file

# Of a larger file the bytes are not kept, so `as_bytes` has none.
KEPT = 100 * 1024 * 1024
F = TypeVar("F", bound="File")
FileField = shown_as("file")
_BINARY = "application/octet-stream"


def in_thread(method: Any) -> Any:
    """Return a class method without blocking; it takes what the method takes."""
    name = method.__func__.__name__

    @functools.wraps(method.__func__)
    async def call(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(getattr(cls, name), *args, **kwargs)

    call.__name__, call.__doc__ = f"{name}_async", f"Do without blocking what `{name}` does."
    call.__qualname__ = f"{method.__func__.__qualname__}_async"
    return classmethod(call)


class File(BaseModel):
    """A file by its URL.

    As an input it may be given as a string, an http, https or data URL.
    """

    url: str = Field(description="The URL where the file can be downloaded from.")
    content_type: str | None = Field(
        None, description="The mime type of the file.", examples=["image/png"]
    )
    file_name: str | None = Field(
        None,
        description="The name of the file. It will be auto-generated if not provided.",
        examples=["z9RV14K95DvU.png"],
    )
    file_size: int | None = Field(
        None, description="The size of the file in bytes.", examples=[4404019]
    )
    file_data: bytes | None = Field(None, description="File data", exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if urlsplit(value).scheme not in ("http", "https", "data"):
            raise ValueError("value must be a valid URL")
        return {"url": value}

    @classmethod
    def from_bytes(
        cls: type[F],
        data: bytes,
        content_type: str | None = None,
        file_name: str | None = None,
        repository: Any = None,
        fallback_repository: Any = None,
        request: Any = None,
        save_kwargs: Any = None,
        fallback_save_kwargs: Any = None,
    ) -> F:
        """Store bytes; of a name or a type the other follows.

        `request` is the endpoint's, whose caller says how long the file is kept, unless
        `save_kwargs` holds an ``object_lifecycle_preference``. What else fal has here, as
        `repository`, is taken and has no effect.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"from_bytes takes bytes, no {type(data).__name__}")
        content_type, file_name = _described(content_type, file_name)
        return cls(
            url=storage.upload(data, content_type, file_name, _lifecycle(request, save_kwargs)),
            content_type=content_type,
            file_name=file_name,
            file_size=len(data),
            file_data=data,
        )

    @classmethod
    def from_path(
        cls: type[F],
        path: str | Path,
        content_type: str | None = None,
        repository: Any = None,
        multipart: bool | None = None,
        fallback_repository: Any = None,
        request: Any = None,
        save_kwargs: Any = None,
        fallback_save_kwargs: Any = None,
    ) -> F:
        """Store a file; its type follows from its name, unless it is given.

        Raises
        ------
        FileNotFoundError
            When it does not exist.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"File {path} does not exist")
        size = path.stat().st_size
        data = path.read_bytes() if size <= KEPT else None
        content_type, name = _described(content_type, path.name)
        return cls(
            url=storage.upload(
                path if data is None else data,
                content_type,
                name,
                _lifecycle(request, save_kwargs),
            ),
            content_type=content_type,
            file_name=name,
            file_size=size,
            file_data=data,
        )

    from_bytes_async = in_thread(from_bytes)
    from_path_async = in_thread(from_path)

    @classmethod
    def reserve(
        cls: type[F],
        content_type: str | None = None,
        file_name: str | None = None,
        request: Any = None,
        repository: Any = None,
        extra_headers: Any = None,
    ) -> PendingFile:
        """Return a file whose URL is known before its bytes; ``complete(data)`` sends them."""
        content_type, file_name = _described(content_type, file_name)
        return PendingFile(*storage.reserve(content_type, file_name), content_type, file_name)

    def as_bytes(self) -> bytes:
        """Return the bytes that this file was made from.

        Raises
        ------
        ValueError
            When it came as a URL, or is a large one; `save` downloads it.
        """
        if self.file_data is None:
            raise ValueError("File has not been downloaded; read what save(path) writes")
        return self.file_data

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Download the file to a path and return that."""
        path = Path(path).resolve()
        if path.exists() and not overwrite:
            raise FileExistsError(f"File {path} already exists")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            return download_file(self.url, folder).replace(path)

    async def save_async(self, path: str | Path, overwrite: bool = False) -> Path:
        """Download the file without blocking, see `save`."""
        return await asyncio.to_thread(self.save, path, overwrite)


@dataclass
class PendingFile:
    """A file whose URL is known and whose bytes are to come."""

    url: str
    _upload_url: str = field(repr=False)
    content_type: str
    file_name: str

    def complete(self, content: bytes | str | Path) -> File:
        """Send the bytes, or a file's, and return the file."""
        data = content if isinstance(content, bytes) else None
        source = Path(content) if not isinstance(content, bytes) else content
        storage.put(self._upload_url, source, self.content_type)
        return File(
            url=self.url,
            content_type=self.content_type,
            file_name=self.file_name,
            file_size=len(source) if isinstance(source, bytes) else source.stat().st_size,
            file_data=data,
        )

    def abort(self) -> None:
        """Give the URL up: nothing was sent, and it expires by itself."""


class CompressedFile(File):
    """A zip file; iterating gives the paths of what is in it."""

    _folder: Any = PrivateAttr(None)

    def __iter__(self) -> Iterator[Path]:  # type: ignore[override]
        yield from self._extracted().iterdir()  # which keeps this alive, and with it the files

    def glob(self, pattern: str) -> Iterator[Path]:
        """Yield the paths inside that match."""
        yield from self._extracted().glob(pattern)

    def _extracted(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory()
            archive = self.save(Path(self._folder.name) / "archive.zip")
            with ZipFile(archive) as content:
                content.extractall(Path(self._folder.name) / "content")
            archive.unlink()
        return Path(self._folder.name) / "content"

    def __del__(self) -> None:
        folder = (self.__pydantic_private__ or {}).get("_folder")
        if folder is not None:
            shutil.rmtree(folder.name, ignore_errors=True)
            folder._finalizer.detach()


def _described(content_type: str | None, file_name: str | None) -> tuple[str, str]:
    """Return type and name of a file, of which neither need be known."""
    if content_type is None and file_name is not None:
        content_type = mimetypes.guess_type(file_name)[0]
    content_type = content_type or _BINARY
    if file_name is None:
        file_name = f"{uuid.uuid4().hex}{media_types.extension(content_type)}"
    return content_type, file_name


def _lifecycle(request: Any, save_kwargs: Any) -> dict[str, Any] | None:
    """Return how long a file is kept: as its author says, else as the caller wants."""
    if save_kwargs and (own := save_kwargs.get("object_lifecycle_preference")) is not None:
        return dict(own)
    if request is not None:
        return lifecycle_preference(request.headers.get("x-fal-object-lifecycle-preference"))
    app = get_current_app()
    current = app.current_request if app is not None else None
    return current.lifecycle_preference if current is not None else None
