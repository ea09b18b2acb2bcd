"""`HealthCheck` and `RetryConfig` as apps write them: briefer than the options that they become."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from fal_notebook import option_types


class HealthCheck(option_types.HealthCheck):
    """How the gateway asks a runner whether it is well; an endpoint's has its path by itself."""

    path: Annotated[str, Field(pattern="^/")] = ""


class RetryConfig(option_types.RetryConfig):
    """Retries of the queue per kind of failure: ``RetryConfig(server_error=3, timeout=1)``."""

    @field_validator("server_error", "timeout", "connection_error", mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return {"retries": max(value, 0)} if type(value) is int else value
