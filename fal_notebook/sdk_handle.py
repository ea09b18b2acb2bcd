"""The handle of a class of fal's own SDK: its endpoints speak JSON, as fal's own client does."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from fal_notebook import calls, sdk_app
from fal_notebook.annotations import is_class_of
from fal_notebook.app_handle import AppHandle
from fal_notebook.exceptions import FalNotebookError
from fal_notebook.handle import Endpoint, shared_client, whole_path
from fal_notebook.submitting import Submitter

_JSON = "application/json"
_EVENTS = "text/event-stream"


class SdkHandle(AppHandle):
    """A deployed class of the SDK, called as any `App`; values come back as their JSON says."""

    def _endpoints_of(self, cls: Any) -> dict[str, Endpoint]:
        routes = sdk_app.endpoints_of(cls)
        return {n: SdkEndpoint(self, path, Parameters.of(cls, n)) for n, path in routes.items()}

    def __getitem__(self, path: str) -> Endpoint:
        """Return what calls one path of the app."""
        path = whole_path(path)
        known = {endpoint.path: endpoint for endpoint in self._endpoints.values()}
        return known[path] if path in known else SdkEndpoint(self, path, Parameters())

    @property
    def local(self) -> Any:
        """Refuse: the SDK's classes run in runners only."""
        raise FalNotebookError(
            f"{self.name} is a class of fal's own SDK, which runs in runners only"
        )


@dataclass(frozen=True)
class Parameters:
    """What an endpoint takes: one model as the body, or plain values in the query, as in fal."""

    names: tuple[str, ...] = ()
    model: str | None = None
    result: Any = Any

    @classmethod
    def of(cls, app: Any, method: str) -> Parameters:
        """Read them off a method."""
        hints = sdk_app.hints_of(app, method)
        names = tuple(inspect.signature(getattr(app, method)).parameters)[1:]
        models = [n for n in names if _is_model(hints.get(n))]
        result = hints.get("return", Any)
        return cls(names, models[0] if len(models) == 1 else None, result)

    def sent(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> calls.Sent:
        """Return arguments as they travel; of a model its fields may be given by name."""
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        if self.names and self.model is None:
            return calls.Sent(b"", _JSON, to_jsonable_python(given))
        body = given.pop(self.model) if self.model in given else given
        query = given if body is not given else {}
        return calls.Sent(json.dumps(to_jsonable_python(body)).encode(), _JSON, query)

    def value(self, content: Any) -> Any:
        """Return JSON as the model that the endpoint says it returns."""
        return self.result.model_validate(content) if _is_model(self.result) else content


class SdkEndpoint(Endpoint):
    """One path of such an app."""

    def __init__(self, handle: SdkHandle, path: str, parameters: Parameters) -> None:
        super().__init__(handle, path)
        self._parameters = parameters

    def with_options(self, **options: Any) -> Submitter:
        """Return what submits and maps with options of the queue; results are plain JSON."""
        given = super().with_options(**options)
        return JsonSubmitter(**vars(given), parameters=self._parameters)

    async def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        sent = self._parameters.sent(args, kwargs)
        await self._handle.ready()
        answered = self._answered(sent)
        first = await answered.__anext__()
        if first is _EVENTS:
            return calls.Stream(answered)
        await answered.aclose()
        return self._parameters.value(first)

    async def _answered(self, sent: calls.Sent) -> AsyncGenerator[Any, None]:
        """Yield what was answered; of server-sent events first a mark, then their data."""
        handle = self._handle
        target = f"{self.path}?{urlencode(sent.query, doseq=True)}" if sent.query else self.path
        arguments = handle.owner, handle.name, target, sent.content, sent.content_type
        async with shared_client().run(*arguments) as response:
            if not response.headers.get("content-type", "").startswith(_EVENTS):
                yield _content(response.headers, await response.aread())
                return
            yield _EVENTS
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    yield _json_or_text(line.removeprefix("data:").strip())


@dataclass(frozen=True)
class JsonSubmitter(Submitter):
    """Submits the JSON of what an endpoint takes."""

    parameters: Parameters = Parameters()

    def dump(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> calls.Sent:
        """Return arguments as they travel."""
        return self.parameters.sent(args, kwargs)


def _is_model(hint: Any) -> bool:
    return is_class_of(hint, BaseModel)


def _content(headers: Mapping[str, str], content: bytes) -> Any:
    if headers.get("content-type", "").startswith(_JSON):
        return json.loads(content)
    return content


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
