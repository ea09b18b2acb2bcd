"""The exceptions that an app raises to say what its caller is answered; named as fal's.

::

    FalServerlessException
    ├── AppException                    a message and a status
    │   └── GPUException                503, and the runner is replaced
    │       └── GPUOutOfMemoryException
    │           └── CUDAOutOfMemoryException
    ├── FieldException                  one field of the input is at fault: 422
    ├── RequestCancelledException       499
    ├── FileTooLargeError
    ├── AppFileUploadException          a file of `app_files` cannot be sent
    └── UnauthenticatedException        there is no key
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

GPU_STATUS = 503
_OUT_OF_MEMORY = "CUDA error: out of memory"
_GPU_WORDS = (
    *("cuda", "cudnn", "nvml", "nccl", "cublas"),
    *("cufft", "cusolver", "cusparse", "triton"),
)


class FalServerlessException(Exception):  # noqa: N818  fal's names
    """Base of what an app raises for its caller."""


class AppException(FalServerlessException):
    """The caller is answered `status_code` with `message` as its detail."""

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message, status_code)
        self.message = message
        self.status_code = status_code

    def __str__(self) -> str:
        return self.message


class FieldException(FalServerlessException):
    """One field of the input is at fault; the caller sees it as if pydantic had refused it."""

    def __init__(
        self,
        field: str,
        message: str,
        status_code: int = 422,
        type: str = "value_error",
        billable_units: float | str | None = 0,
    ) -> None:
        super().__init__(field, message, status_code, type, billable_units)
        self.field = field
        self.message = message
        self.status_code = status_code
        self.type = type
        self.billable_units = billable_units

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"

    def to_pydantic_format(self) -> dict[str, list[dict[str, Any]]]:
        """Return the body of the answer."""
        problem = {"loc": ["body", self.field], "msg": self.message, "type": self.type}
        return {"detail": [problem]}


class _WithMessage(FalServerlessException):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestCancelledException(_WithMessage):
    """The caller has gone or cancelled: 499."""

    def __init__(self, message: str = "Request cancelled by the client.") -> None:
        super().__init__(message)


class FileTooLargeError(_WithMessage):
    """A file is larger than what reads it takes."""

    def __init__(self, message: str = "File is too large.") -> None:
        super().__init__(message)


class AppFileUploadException(_WithMessage):
    """A file of `app_files` cannot be sent."""

    def __init__(self, message: str, relative_path: str) -> None:
        super().__init__(message)
        self.args = (message, relative_path)
        self.relative_path = relative_path


class UnauthenticatedException(FalServerlessException):
    """There is no key."""

    def __init__(self) -> None:
        super().__init__("there is no key; make one with %fal keys create, and set FAL_KEY")

    def __reduce__(self) -> tuple[type[UnauthenticatedException], tuple[()]]:
        return type(self), ()


class GPUException(AppException):
    """The runner's GPU is of no use any more: 503, and the runner is replaced."""

    def __init__(self, message: str = "GPU error", status_code: int = GPU_STATUS) -> None:
        super().__init__(message, status_code)


class GPUOutOfMemoryException(GPUException):
    """A GPU had too little memory."""


class CUDAOutOfMemoryException(GPUOutOfMemoryException):
    """CUDA had too little memory."""

    def __init__(self, message: str = _OUT_OF_MEMORY, status_code: int = GPU_STATUS) -> None:
        super().__init__(message, status_code)


def said(error: Any, shown: Callable[[Any], str] = str) -> str:
    """Return the text of an error, or of a part of it, whatever its own code does."""
    try:
        return shown(error)
    except Exception as unprintable:
        return f"(its text cannot be made: {type(unprintable).__name__})"


def gpu_error(error: BaseException) -> GPUException | None:
    """Return what an error says about the GPU, if it names one of its libraries."""
    if isinstance(error, GPUException):
        return error
    if _is_out_of_memory(error):
        return CUDAOutOfMemoryException()
    text = said(error).lower()
    return GPUException() if any(word in text for word in _GPU_WORDS) else None


def _is_out_of_memory(error: BaseException) -> bool:
    """Say whether it is what PyTorch raises then; some of its words hide it."""
    text = said(error)
    return isinstance(error, RuntimeError) and (
        ("CUDA" in text and "out of memory" in text)
        or "NVML_SUCCESS == r INTERNAL ASSERT FAILED" in text
        or "CUDNN_STATUS_INTERNAL_ERROR" in text
        or "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED." in text
    )


class catch_gpu_exceptions(contextlib.ContextDecorator):  # noqa: N801  fal's name
    """Turn errors of the GPU's libraries into `GPUException`; a block or a decorator."""

    def __enter__(self) -> catch_gpu_exceptions:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, GPUException):
            return
        found = gpu_error(error)
        if found is not None:
            raise found from error
