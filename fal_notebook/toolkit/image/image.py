"""Images as files, and their sizes."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fal_notebook.toolkit.fields import shown_as
from fal_notebook.toolkit.file.file import File
from fal_notebook.toolkit.utils.download_utils import read_url

if TYPE_CHECKING:
    from PIL import Image as PILImage

LARGEST_IMAGE = 50 * 1024 * 1024
ImageFormat = Literal["png", "jpeg", "jpg", "webp", "gif"]
ImageSizePreset = Literal[
    "square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"
]
_SAVING: dict[str, dict[str, int]] = {"png": {"compress_level": 1}, "jpeg": {"quality": 95}}


class ImageSize(BaseModel):
    """Width and height in pixels."""

    width: int = Field(512, description="The width of the generated image.", gt=0, le=14142)
    height: int = Field(512, description="The height of the generated image.", gt=0, le=14142)


ImageSizeInput = ImageSize | ImageSizePreset
IMAGE_SIZE_PRESETS: dict[str, ImageSize] = {
    "square_hd": ImageSize(width=1024, height=1024),
    "square": ImageSize(width=512, height=512),
    "portrait_4_3": ImageSize(width=768, height=1024),
    "portrait_16_9": ImageSize(width=576, height=1024),
    "landscape_4_3": ImageSize(width=1024, height=768),
    "landscape_16_9": ImageSize(width=1024, height=576),
}


def get_image_size(source: ImageSizeInput) -> ImageSize:
    """Return the size that a preset's name or a size is."""
    if isinstance(source, ImageSize):
        return source
    if not isinstance(source, str) or source not in IMAGE_SIZE_PRESETS:
        raise TypeError(f"Invalid value for ImageSize: {source}")
    return IMAGE_SIZE_PRESETS[source]


class Image(File):
    """An image file."""

    model_config = ConfigDict(json_schema_extra={"ui": {"field": "image"}})

    width: int | None = Field(
        None, description="The width of the image in pixels.", examples=[1024]
    )
    height: int | None = Field(
        None, description="The height of the image in pixels.", examples=[1024]
    )

    @classmethod
    def from_bytes(  # type: ignore[override]
        cls,
        data: bytes,
        format: ImageFormat,
        size: ImageSize | None = None,
        file_name: str | None = None,
        repository: Any = None,
        fallback_repository: Any = None,
        request: Any = None,
        save_kwargs: Any = None,
        fallback_save_kwargs: Any = None,
    ) -> Image:
        """Store the bytes of an image of a format."""
        given = {"request": request, "save_kwargs": save_kwargs}
        made = super().from_bytes(data, f"image/{format}", file_name, **given)
        made.width, made.height = (size.width, size.height) if size else (None, None)
        return made

    @classmethod
    async def from_bytes_async(
        cls,
        data: bytes,
        content_type: str | None = None,
        file_name: str | None = None,
        repository: Any = None,
        fallback_repository: Any = None,
        request: Any = None,
        save_kwargs: Any = None,
        fallback_save_kwargs: Any = None,
        *,
        format: ImageFormat | None = None,
        size: ImageSize | None = None,
    ) -> Image:
        """Do without blocking what `from_bytes` does; a content type is taken too, as by fal's."""
        kind = format or content_type
        full = f"image/{kind}" if kind and "/" not in kind else kind
        store = super().from_bytes
        given = {"request": request, "save_kwargs": save_kwargs}
        made = await asyncio.to_thread(store, data, full, file_name, **given)
        made.width, made.height = (size.width, size.height) if size else (None, None)
        return made

    @classmethod
    def from_pil(
        cls,
        pil_image: PILImage.Image,
        format: ImageFormat | None = None,
        file_name: str | None = None,
        repository: Any = None,
        fallback_repository: Any = None,
        request: Any = None,
        save_kwargs: Any = None,
        fallback_save_kwargs: Any = None,
    ) -> Image:
        """Store a Pillow image, by default in the format that it was opened from, else as png.

        Raises
        ------
        ValueError
            When Pillow cannot write it so, with its reason.
        """
        chosen: Any = (format or pil_image.format or "png").lower()
        chosen = "jpeg" if chosen == "jpg" else chosen
        size = ImageSize(width=pil_image.width, height=pil_image.height)
        given = {"request": request, "save_kwargs": save_kwargs}
        return cls.from_bytes(_encoded(pil_image, chosen), chosen, size, file_name, **given)

    def to_pil(self, mode: str = "RGB") -> PILImage.Image:
        """Download the image and return it as Pillow's, turned as its camera says."""
        from PIL import Image as Pillow
        from PIL import ImageOps

        image = Pillow.open(io.BytesIO(read_url(self.url, LARGEST_IMAGE)))
        return ImageOps.exif_transpose(image).convert(mode)


ImageField = shown_as("image")
ImageSizeField = shown_as(None)


def _encoded(image: PILImage.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    try:
        image.save(buffer, format=format, **_SAVING.get(format, {}))
    except (KeyError, OSError, ValueError) as error:
        reason = "it knows no such format" if isinstance(error, KeyError) else error
        raise ValueError(
            f"Pillow cannot write an image of mode {image.mode} as {format}: {reason}; give "
            "another format, or convert the image first: image.convert('RGB')"
        ) from error
    return buffer.getvalue()
