"""`HealthCheck` and `RetryConfig` as apps write them: briefer than the options that they become."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from fal_notebook import option_types
from fal_notebook.exceptions import OptionError
from fal_notebook.option_errors import unknown_option


class HealthCheck(option_types.HealthCheck):
    """How the gateway asks a runner whether it is well; an endpoint's has its path by itself.

    Raises
    ------
    OptionError
        When a value is unknown or not allowed; one sentence.
    """

    path: Annotated[str, Field(pattern="^/")] = ""

    def __init__(self, **values: Any) -> None:
        given = _checked(type(self), values)
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise _refused(type(self), error) from None


class RetryConfig(option_types.RetryConfig):
    """Retries of the queue per kind of failure: ``RetryConfig(server_error=3, timeout=1)``.

    Raises
    ------
    OptionError
        When there is none, or one is unknown or no number; one sentence.
    """

    def __init__(
        self,
        timeout: Any = None,
        server_error: Any = None,
        connection_error: Any = None,
        **more: Any,
    ) -> None:
        values = {"timeout": timeout, "server_error": server_error}
        given = _checked(type(self), {**values, "connection_error": connection_error, **more})
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise _refused(type(self), error) from None

    @field_validator("server_error", "timeout", "connection_error", mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return {"retries": max(value, 0)} if type(value) is int else value


def _checked(kind: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that are given: None is none, as in fal."""
    unknown = [name for name in values if name not in kind.model_fields]
    if unknown:
        raise OptionError(f"{kind.__name__}: {unknown_option(unknown[0], kind.model_fields)}")
    return {name: value for name, value in values.items() if value is not None}


def _refused(kind: type[BaseModel], error: ValidationError) -> OptionError:
    problem = error.errors(include_url=False)[0]
    if not problem["loc"]:
        return OptionError(f"{kind.__name__}: {problem['ctx']['error']} is needed")
    message = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}"
    what = f"{problem['loc'][0]}={problem['input']!r} is not allowed"
    return OptionError(f"{kind.__name__}: {what}: {message}")
