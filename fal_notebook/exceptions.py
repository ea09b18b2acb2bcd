"""Every error of the project, in one tree; each message is one sentence for its reader.

::

    FalNotebookError
    ├── OptionError             an option is unknown, of the wrong type or contradicts another
    │   └── AppFilesError       a file of app_files cannot be sent
    ├── SettingError            an environment variable or config.toml is wrong
    ├── CellError               a cell has nothing that can be deployed
    ├── AppDefinitionError      a class cannot be an app
    ├── OutOfScopeError         a part of fal that this project leaves out
    ├── CaptureError            a function cannot be captured
    │   ├── UnpicklableError    a value it uses cannot be pickled
    │   ├── PayloadTooLargeError
    │   └── SecretInPayloadError
    │       └── StoredSecretError   it is the value of a stored secret
    ├── PayloadFormatError      bytes that are not a payload, or one for another Python
    ├── BuildError              an environment could not be built
    │   ├── EngineError         the Docker engine cannot be reached
    │   └── RegistryError       a registry refuses, lacks an image or cannot be reached
    ├── DeployError             a revision did not come up; what ran is still running
    ├── GatewayError            the gateway refused, or cannot be reached
    │   ├── GatewayUnavailableError
    │   ├── NotFoundError
    │   │   └── PayloadMissingError
    │   │       └── ContextMissingError   the image's build context
    │   ├── UnauthorizedError
    │   ├── ConflictError       the app belongs to another notebook
    │   ├── RequestCancelledError   a queued request was cancelled
    │   ├── StartTimeoutError   a queued request did not begin in time
    │   └── StoreError          the gateway cannot read or write its state
    │       └── DiskFullError
    ├── WebhookUrlError         a webhook's URL is malformed or points to where it may not
    ├── WebhookDeliveryError    a webhook's target did not take it; it is tried again
    └── RemoteError             the deployed function raised; carries the remote traceback as text
        └── PythonMismatchError the app runs on another Python minor than its caller

What an app itself raises for its caller is a tree of its own, see `app_exceptions`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fal_notebook.app_exceptions import AppException as AppException
from fal_notebook.app_exceptions import AppFileUploadException as AppFileUploadException
from fal_notebook.app_exceptions import CUDAOutOfMemoryException as CUDAOutOfMemoryException
from fal_notebook.app_exceptions import FalServerlessException as FalServerlessException
from fal_notebook.app_exceptions import FieldException as FieldException
from fal_notebook.app_exceptions import FileTooLargeError as FileTooLargeError
from fal_notebook.app_exceptions import GPUException as GPUException
from fal_notebook.app_exceptions import GPUOutOfMemoryException as GPUOutOfMemoryException
from fal_notebook.app_exceptions import RequestCancelledException as RequestCancelledException
from fal_notebook.app_exceptions import UnauthenticatedException as UnauthenticatedException
from fal_notebook.app_exceptions import catch_gpu_exceptions as catch_gpu_exceptions


class FalNotebookError(Exception):
    """Base of all errors of this package; a notebook shows its sentence without a traceback."""

    def _render_traceback_(self) -> list[str]:
        remote = getattr(self.__cause__, "remote_traceback", "")  # where a runner raised it
        return [f"{type(self).__name__}: {self}", *([remote] if remote else [])]


class OptionError(FalNotebookError):
    """An option is unknown, of the wrong type, out of range, or contradicts another."""


class AppFilesError(OptionError, AppFileUploadException):
    """A file of `app_files` cannot be sent; fal's own name catches it too."""

    def __str__(self) -> str:
        return self.message


class SettingError(FalNotebookError):
    """A setting from the environment or from config.toml cannot be used."""


class CellError(FalNotebookError):
    """A cell has nothing that can be deployed."""


class AppDefinitionError(FalNotebookError):
    """A class cannot be an app; the message names it and the line."""


class OutOfScopeError(FalNotebookError):
    """A part of fal that this project leaves out.

    Parameters
    ----------
    name : str
        As fal calls it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)

    def __str__(self) -> str:
        return f"fal's {self.args[0]} is not part of fal_notebook; use the fal SDK for it"


class CaptureError(FalNotebookError):
    """A function cannot be captured."""


class UnpicklableError(CaptureError):
    """A value that the function uses cannot be pickled; the message holds the path to it."""


class PayloadTooLargeError(CaptureError):
    """The payload is above the hard limit; the message names the largest values."""


class SecretInPayloadError(CaptureError):
    """The payload holds something that looks like a key; the message names the variable."""


class StoredSecretError(SecretInPayloadError):
    """A payload holds the value of a stored secret.

    Attributes
    ----------
    name : str
        The secret's name.
    start, end : int
        Where in the payload its value stands.
    """

    def __init__(self, message: str, name: str = "", start: int = 0, end: int = 0) -> None:
        super().__init__(message)
        self.name = name
        self.start = start
        self.end = end


class PayloadFormatError(FalNotebookError):
    """Bytes that are not a payload of ours, or one that was made by another Python minor."""


class BuildError(FalNotebookError):
    """An environment could not be built; the message holds the builder's reason.

    Parameters
    ----------
    log : sequence of str
        The builder's last lines.
    """

    def __init__(self, message: str, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.log = list(log)


class EngineError(BuildError):
    """The Docker engine does not answer; the message says how to get one."""


class RegistryError(BuildError):
    """An image cannot be pulled or pushed; the message says where credentials go.

    Attributes
    ----------
    host : str
        The registry that refused the credentials; empty for any other reason.
    """

    def __init__(self, message: str, log: Sequence[str] = (), host: str = "") -> None:
        super().__init__(message, log)
        self.host = host


class DeployError(FalNotebookError):
    """A new revision did not come up; what ran before is still running.

    Attributes
    ----------
    still_runs : bool
        Whether there was such a revision.
    """

    def __init__(self, message: str, still_runs: bool = False) -> None:
        super().__init__(message)
        self.still_runs = still_runs


class GatewayError(FalNotebookError):
    """The gateway refused a request or cannot be reached."""


class GatewayUnavailableError(GatewayError):
    """No gateway answers."""


class NotFoundError(GatewayError):
    """There is no such app, revision, runner or key."""


class PayloadMissingError(NotFoundError):
    """The gateway needs the payload before it can deploy; a client uploads it and asks again."""


class ContextMissingError(PayloadMissingError):
    """The gateway needs the build context of the image too."""


class UnauthorizedError(GatewayError):
    """The token or key is missing or wrong."""


class ConflictError(GatewayError):
    """The app is owned by another notebook; the message says how to take it over."""


class RequestCancelledError(GatewayError):
    """A queued request was cancelled; it has no result."""


class StartTimeoutError(GatewayError):
    """A queued request did not begin in time; it has no result."""


class StoreError(GatewayError):
    """The gateway cannot read or write its state; nothing of the change was made."""


class DiskFullError(StoreError):
    """There is no room left for the gateway's state."""


class WebhookUrlError(FalNotebookError):
    """A webhook's URL is malformed, or points to an address that only this machine should reach."""


class WebhookDeliveryError(FalNotebookError):
    """A webhook's target did not take it; the message says how it failed."""


class RemoteError(FalNotebookError):
    """The deployed function raised an error that has no counterpart here.

    Attributes
    ----------
    type_name : str
        Qualified name of the remote exception's type.
    remote_traceback : str
        The traceback as the runner printed it.
    """

    def __init__(self, message: str, type_name: str = "", remote_traceback: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.remote_traceback = remote_traceback

    def _render_traceback_(self) -> list[str]:
        shown = super()._render_traceback_()
        told = any(self.remote_traceback.strip() in part for part in shown)
        return shown if told else [*shown, self.remote_traceback]


class PythonMismatchError(RemoteError):
    """Python objects that another minor version of Python made; none of them was unpickled."""
