"""What apps are made with: files, images, models, downloads, a key-value store; names as fal's."""

from __future__ import annotations

from typing import Any

from fal_notebook.exceptions import OutOfScopeError
from fal_notebook.toolkit.audio import Audio, AudioField
from fal_notebook.toolkit.exceptions import (
    DownloadError,
    FalTookitException,
    FileUploadException,
    KVStoreException,
)
from fal_notebook.toolkit.fields import Field
from fal_notebook.toolkit.file import CompressedFile, File, FileField
from fal_notebook.toolkit.folders import (
    FAL_MODEL_WEIGHTS_DIR,
    FAL_PERSISTENT_DIR,
    FAL_REPOSITORY_DIR,
)
from fal_notebook.toolkit.image import (
    Image,
    ImageField,
    ImageSize,
    ImageSizeField,
    ImageSizeInput,
    get_image_size,
)
from fal_notebook.toolkit.kv import KVStore
from fal_notebook.toolkit.pydantic import FalBaseModel, Hidden
from fal_notebook.toolkit.utils import clone_repository, download_file, download_model_weights
from fal_notebook.toolkit.video import Video, VideoField

__all__ = [
    "FAL_MODEL_WEIGHTS_DIR",
    "FAL_PERSISTENT_DIR",
    "FAL_REPOSITORY_DIR",
    "Audio",
    "AudioField",
    "CompressedFile",
    "DownloadError",
    "FalBaseModel",
    "FalTookitException",
    "Field",
    "File",
    "FileField",
    "FileUploadException",
    "Hidden",
    "Image",
    "ImageField",
    "ImageSize",
    "ImageSizeField",
    "ImageSizeInput",
    "KVStore",
    "KVStoreException",
    "Video",
    "VideoField",
    "clone_repository",
    "download_file",
    "download_model_weights",
    "get_image_size",
]

_NOT_HERE = (
    *("compilation", "constraints", "get_gpu_type", "load_inductor_cache", "sync_inductor_cache"),
    "synchronized_inductor_cache",
    *("ImageSizeConstraints", "ImageValidationConfig", "ImageValidationOptions", "to_xfal"),
    *("VideoNormalizationConfig", "VideoValidationConfig", "VideoValidationOptions"),
)


def __getattr__(name: str) -> Any:
    if name in _NOT_HERE:
        raise OutOfScopeError(f"toolkit.{name}")
    raise AttributeError(f"module 'fal_notebook.toolkit' has no attribute {name!r}")
