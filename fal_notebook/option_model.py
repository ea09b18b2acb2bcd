"""The options of an app and of its cell as two models; parsing and help are in `options`."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import to_json

from fal_notebook.container import ContainerImage, image_value
from fal_notebook.envs import ENV_RULE
from fal_notebook.option_errors import ALIASES
from fal_notebook.option_types import (
    NAME_RULE,
    AppName,
    EnvironmentName,
    EnvName,
    Flag,
    Gpus,
    HealthCheck,
    ImageReference,
    ModuleName,
    MostRunners,
    MountPath,
    Owner,
    PathText,
    Port,
    Positive,
    PythonVersion,
    Regex,
    Region,
    RequirementText,
    RetryConfig,
    RetryReason,
    Runners,
    SecretName,
    Text,
    Whole,
    option,
)

_SECONDS = "a whole number of seconds, 0 or more, a billion at most"
_SOME_SECONDS = "a whole number of seconds, 1 or more, a billion at most"
_RUNNERS = "a whole number from 0 to 1000"
_POSITIVE = "a whole number, 1 or more, a billion at most"
_PORT = "a whole number from 1 to 65535"
_FLAG = "true or false"
_TEXT = "text"
_PATH = "a path"
_PATHS = "a list of paths"
_OWNER = "lower-case letters, digits and '-', 63 at most"
_ENVIRONMENT_NAMES = "a list of names of environment variables"


class Options(BaseModel):
    """The options of an app, as stored with a revision; defaults are those of a function."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    # identity
    name: AppName | None = option(
        None, "name of the app (unset: that of what the cell deploys)", NAME_RULE
    )
    auth: Literal["private", "public", "shared"] = option(
        "private", "who may call the app", "private, public or shared"
    )
    team: Owner | None = option(None, "owner under which the app is deployed", _OWNER)
    message: str | None = option(None, "note kept with the revision", _TEXT)

    # machine
    machine_type: Text | Annotated[list[Text], Field(min_length=1)] = option(
        "XS",
        "hardware of a runner; a list is tried in order",
        "a name such as XS, S, M, L, XL or GPU-A100, or a list of names",
    )
    num_gpus: Gpus | None = option(None, "GPUs of a runner", "a whole number from 1 to 8")
    regions: Annotated[list[Region], Field(min_length=1)] | None = option(
        None,
        "where runners may be",
        "a list of us-west, us-central, us-east, eu-north, eu-west",
    )

    # environment
    kind: Literal["virtualenv", "container"] | None = option(
        None, "kind of environment (unset: follows from image)", "virtualenv or container"
    )
    image: Annotated[ContainerImage | ImageReference | None, BeforeValidator(image_value)] = option(
        None,
        "container image that the app runs in",
        "a ContainerImage, or a reference such as 'my-org/my-server:latest'",
    )
    requirements: list[RequirementText] | list[list[RequirementText]] | None = option(
        None,
        "pip packages of the runner (unset: the kernel's own)",
        "a list of requirements, or a list of such lists (layers)",
    )
    python_version: PythonVersion | None = option(
        None, "Python of the environment (unset: the kernel's)", "text such as '3.11'"
    )
    local_python_modules: list[ModuleName] | None = option(
        None, "local modules shipped by value", "a list of names of modules"
    )
    force: Flag = option(False, "build the environment again (also force_env_build)", _FLAG)
    compile_bytecode: Flag = option(False, "compile the environment's modules when built", _FLAG)
    pass_env: list[EnvironmentName] | None = option(
        None, "environment variables of the kernel that runners see", _ENVIRONMENT_NAMES
    )
    secrets: list[SecretName] | None = option(
        None,
        "stored secrets that runners see as environment variables",
        "a list of names, never values",
    )
    data_mounts: list[MountPath] | None = option(
        None,
        "where the shared storage appears (unset: /data)",
        "a list of absolute paths",
    )
    app_files: list[PathText] | None = option(
        None, "files and folders copied beside the app", _PATHS
    )
    app_files_ignore: list[Regex] | None = option(
        None,
        "patterns left out of app_files (unset: notebooks, .git, .env and the like)",
        "a list of regular expressions",
    )
    app_files_context_dir: PathText | None = option(
        None, "folder of app_files (unset: the notebook's)", _PATH
    )

    # scaling
    keep_alive: Whole = option(10, "seconds an idle runner beyond the minimum stays", _SECONDS)
    min_concurrency: Runners = option(0, "runners always kept warm", _RUNNERS)
    max_concurrency: MostRunners | None = option(
        None, "most runners (unset: what this machine holds)", "a whole number from 1 to 1000"
    )
    max_multiplexing: Positive = option(1, "concurrent requests per runner", _POSITIVE)
    concurrency_buffer: Runners = option(0, "extra warm runners above load", _RUNNERS)
    concurrency_buffer_perc: Whole = option(
        0, "the same as a percentage of load", "a whole number of percent, a billion at most"
    )
    scaling_delay: Whole | None = option(
        None, "seconds a request waits before it may start a runner (unset: 0)", _SECONDS
    )
    app_scale_settings: Flag = option(
        False, "take scaling from the code instead of inheriting it, as reset_scale", _FLAG
    )

    # requests and the life of a runner
    request_timeout: Positive | None = option(
        None, "seconds for one attempt of one request (unset: 3600)", _SOME_SECONDS
    )
    startup_timeout: Positive | None = option(
        None, "seconds for setup and port open (unset: 600)", _SOME_SECONDS
    )
    request_start_timeout: Whole | None = option(
        None,
        "seconds until a request with a key of the owner must have begun (0: no limit)",
        _SECONDS,
    )
    termination_grace_period_seconds: Whole = option(
        5, "seconds a runner has to stop before it is killed", _SECONDS
    )
    setup_function: SkipJsonSchema[Callable[..., Any] | None] = option(
        None,
        "runs once per runner; its result, unless None, becomes the first argument",
        "a function of the notebook",
        exclude=True,
    )
    health_check: HealthCheck | None = option(
        None,
        "how a runner is asked whether it is well",
        "HealthCheck(path='/…', …), with start_period_seconds, timeout_seconds, "
        "failure_threshold, call_regularly and method, or such a dict",
    )
    skip_retry_conditions: list[RetryReason] | None = option(
        None,
        "failures after which the queue does not retry",
        "a list of server_error, timeout, connection_error",
    )
    retry_config: RetryConfig | None = option(
        None,
        "retries of the queue per kind of failure; 9 at most, whatever is given",
        "a dict such as {'timeout': {'retries': 2}}, of server_error, timeout, connection_error",
    )
    deployment_strategy: Literal["rolling", "recreate"] = option(
        "rolling", "how a new revision takes over", "rolling or recreate"
    )

    # interface
    serve: Flag = option(False, "let others call POST / over HTTP", _FLAG)
    exposed_port: Port | None = option(
        None, "port of a server that gets the traffic as it is", _PORT
    )
    metadata: dict[str, Any] | None = option(
        None, "{'openapi': {…}} is shown in place of the schema found", "a dict of JSON values"
    )
    metrics_port: Port | None = option(
        None, "port of the runner whose /metrics is collected, as $METRICS_PORT says it", _PORT
    )
    private_logs: Flag = option(False, "callers do not see the logs of requests", _FLAG)

    @model_validator(mode="before")
    @classmethod
    def _resolve_aliases(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for alias, name in ALIASES.items():
            if alias in values and name in values:
                raise ValueError(f"{alias} and {name} are the same option; give one of them")
        return {ALIASES.get(name, name): value for name, value in values.items()}

    @field_validator("kind", mode="before")
    @classmethod
    def _refuse_conda(cls, kind: Any) -> Any:
        if kind == "conda":
            raise ValueError("conda environments exist in fal and not here, use requirements")
        return kind

    @field_validator("metadata")
    @classmethod
    def _check_json(cls, metadata: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            json.dumps(metadata, allow_nan=False)
            to_json(metadata)  # which goes 255 levels deep
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"it must be JSON, at most 250 levels deep ({error})") from None
        openapi = (metadata or {}).get("openapi", {})
        if not isinstance(openapi, dict):
            raise ValueError(f"its openapi must be a dict, not {reprlib.repr(openapi)}")
        return metadata

    @model_validator(mode="after")
    def _check_contradictions(self) -> Options:
        sentences = list(_contradictions(self))
        if sentences:
            raise ValueError("; ".join(sentences))
        return self


class CellOptions(BaseModel):
    """The options of a cell that say how it is deployed; they are not stored with the app."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entry: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] | None = option(
        None, "function of the cell that is deployed (unset: the last one)", "a function's name"
    )
    wait: Flag = option(False, "return when the deploy has ended, not at once", _FLAG)
    allow_secret: list[Text] = option(
        [], "variables that may look like a key", "a list of names of variables"
    )
    dry_run: Flag = option(False, "say what is captured, and deploy nothing", _FLAG)
    takeover: Flag = option(False, "take the app over from another notebook", _FLAG)
    reset_scale: Flag = option(False, "take scaling from the cell instead of inheriting it", _FLAG)
    target: Literal["local", "docker"] | None = option(
        None, "where the app runs (unset: the configured one, local)", "local or docker"
    )
    owner: Owner | None = option(None, "owner of the app (unset: the configured one)", _OWNER)
    env: EnvName | None = option(
        None, "environment of the app, which is called NAME--ENV then (unset: main)", ENV_RULE
    )


def _contradictions(options: Options) -> Iterator[str]:
    low, high = options.min_concurrency, options.max_concurrency
    if high is not None and low > high:
        yield f"min_concurrency={low} is above max_concurrency={high}"
    if options.image is not None:
        for name in ("requirements", "app_files"):
            if getattr(options, name):
                yield f"image and {name} exclude each other; put {name} into the image"
    if not options.app_files:
        for name in ("app_files_context_dir", "app_files_ignore"):
            if getattr(options, name):
                yield f"{name} needs app_files"
    if options.kind == "container" and options.image is None:
        yield "kind='container' needs image"
    if options.kind == "virtualenv" and options.image is not None:
        yield "kind='virtualenv' and image exclude each other"
