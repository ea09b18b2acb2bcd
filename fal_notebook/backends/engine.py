"""The Docker engine, through docker-py: what this package asks of it, its errors translated.

Everything here blocks and runs in threads. Streams end when they are closed from another thread.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_network
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import CancellableStream

from fal_notebook import settings
from fal_notebook.backends.build_output import LAST_LINES, BuildOutput, plain
from fal_notebook.backends.engine_words import OTHERWISE, meaning
from fal_notebook.backends.logins import Login, header
from fal_notebook.backends.transfers import Transfer
from fal_notebook.exceptions import BuildError, EngineError
from fal_notebook.image import Recipe, UserImage
from fal_notebook.registries import Reference

DEFAULT_HOST = "unix:///var/run/docker.sock"
# The engine answers everything but builds and streams within this (seconds).
TIMEOUT = 60
# An engine that does not even say its version in that time hangs (seconds).
HANGS = 5.0
# As many calls may be on their way at once.
CALLS = 32
P = ParamSpec("P")
T = TypeVar("T")
Progress = Callable[[str], None]


def host() -> str:
    """Return where the engine is: the setting ``docker_host``, else ``DOCKER_HOST``."""
    return settings.setting("docker_host", os.environ.get("DOCKER_HOST", "")) or DEFAULT_HOST


def _translated(function: Callable[P, T]) -> Callable[P, T]:
    """Raise what docker-py and requests raise as errors of this package."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except APIError as error:
            said = str(error.explanation or error)
            refused = meaning(said) or f"the Docker engine refused: {said}"
            raise BuildError(refused) from error
        except (DockerException, requests.exceptions.RequestException, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                place = tempfile.gettempdir()
                raise BuildError(f"no room for a build's files: {place} is full") from error
            raise EngineError(_unreachable(error)) from error

    return wrapper


def _unreachable(error: Exception) -> str:
    """Say in one line why the engine does not answer, and what to do."""
    text, where = str(error), host()
    if "PermissionError" in text or isinstance(error, PermissionError):
        return (
            f"this user may not use the Docker engine at {where}: run `sudo usermod -aG docker "
            f"$USER`, log in again and restart the gateway; {OTHERWISE}"
        )
    if "FileNotFoundError" in text or isinstance(error, FileNotFoundError):
        return (
            f"there is no Docker engine at {where}: install one (on Debian `apt-get install "
            f"docker.io`), or set DOCKER_HOST and start the gateway anew; {OTHERWISE}"
        )
    if "Invalid bind address" in text:
        return (
            f"{where} is no address of a Docker engine: set DOCKER_HOST to one such as "
            f"unix:///var/run/docker.sock or tcp://127.0.0.1:2375; {OTHERWISE}"
        )
    return (
        f"the Docker engine at {where} does not answer: start it (`systemctl start docker`); "
        f"{OTHERWISE} ({type(error).__name__})"
    )


class Engine:
    """A connection to the engine; made when it is first needed, and again after it was lost."""

    def __init__(self) -> None:
        self._client: docker.APIClient | None = None
        self._lock = threading.Lock()

    @property
    def api(self) -> docker.APIClient:
        """The client; the engine is asked for its version once."""
        with self._lock:
            if self._client is None:
                client = docker.APIClient(
                    host(), version="auto", timeout=HANGS, max_pool_size=CALLS
                )
                client.timeout = TIMEOUT
                self._client = client
            return self._client

    def close(self) -> None:
        """Close idle connections; the next call makes a new client."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    # --- images ------------------------------------------------------------------------------
    @_translated
    def image(self, name: str) -> dict[str, Any] | None:
        """Return what the engine says of an image, None when it does not have it."""
        try:
            return dict(self.api.inspect_image(name))
        except ImageNotFound:
            return None

    def image_id(self, name: str) -> str | None:
        """Return the id of an image, None when the engine does not have it."""
        found = self.image(name)
        return None if found is None else str(found["Id"])

    @_translated
    def image_config(self, name: str) -> dict[str, Any]:
        """Return what an image says of how it is run; nothing when the engine does not have it."""
        try:
            return dict(self.api.inspect_image(name)["Config"] or {})
        except ImageNotFound:
            return {}

    @_translated
    def pull(
        self,
        name: str,
        progress: Progress,
        login: Login | None = None,
        streams: Streams | None = None,
    ) -> str:
        """Fetch an image from its registry; return its digest.

        Closing `streams` breaks it off.

        Raises
        ------
        RegistryError
            With the registry's reason, and where credentials go.
        """
        progress(f"pulling {name}")
        tag = {} if "@" in name or Reference.of(name).tag else {"tag": "latest"}
        asked = self.api._url("/images/create"), {"fromImage": name, **tag}
        return self._transfer(Transfer("pulled", name, login), *asked, progress, streams)

    @_translated
    def push(
        self, image: str, name: str, progress: Progress, login: Login | None, streams: Streams
    ) -> str:
        """Send an image to a registry as ``HOST/NAME:TAG``; return its digest there.

        Raises
        ------
        RegistryError
            With the registry's reason, and where credentials go.
        """
        repository, _, tag = name.rpartition(":")
        before = self.image_id(name)
        self.api.tag(image, repository, tag, force=True)
        try:
            progress(f"pushing {name}")
            asked = self.api._url("/images/{0}/push", repository), {"tag": tag}
            return self._transfer(Transfer("pushed", name, login), *asked, progress, streams)
        finally:
            if before is None:
                self.remove_image(name)  # this name alone: the image has its own
            else:
                self.api.tag(before, repository, tag, force=True)

    def _transfer(
        self,
        transfer: Transfer,
        url: str,
        query: dict[str, str],
        progress: Progress,
        streams: Streams | None,
    ) -> str:
        """Follow a pull or push to its end; what fails on the way stands in the stream."""
        reply = self.api._post(
            url, params=query, headers=transfer.headers, stream=True, timeout=None
        )
        try:
            self.api._raise_for_status(reply)
        except APIError as error:
            reply.close()
            raise transfer.error(str(error.explanation)) from error
        lines = self.api._stream_helper(reply, decode=True)
        with (streams or Streams()).entered(CancellableStream(lines, reply)) as stream:
            for line in stream:
                transfer.take(line, progress)
        return transfer.digest

    @_translated
    def build(
        self,
        recipe: Recipe | UserImage,
        progress: Progress,
        streams: Streams,
        anew: bool,
        logins: Mapping[str, Login] = MappingProxyType({}),
    ) -> None:
        """Build an image and tag it; closing `streams` breaks the build off.

        `anew` has every step done, also those that gave the same before; `logins` are credentials
        of registries by host, for private images that the Dockerfile names.

        Raises
        ------
        BuildError
            With the failing step and its last lines.
        """
        with tempfile.TemporaryFile() as context:
            recipe.write_context(context)
            context.seek(0)
            options = {"t": recipe.tag, "rm": True, "forcerm": True, "nocache": anew}
            options |= recipe.query
            reply = self.api._post(
                self.api._url("/build"),
                data=context,
                params=options,
                headers={"Content-Type": "application/tar", **header(logins)},
                stream=True,
                timeout=None,
            )
            self.api._raise_for_status(reply)
            lines = self.api._stream_helper(reply, decode=True)
            with streams.entered(CancellableStream(lines, reply)) as stream:
                _follow_build(stream, progress)

    @_translated
    def tried(self, image: str, command: list[str], labels: dict[str, str]) -> tuple[int, str]:
        """Run a program in an image, without network; return its exit status and what it printed.

        One that cannot be started has status 127 and printed the reason.
        """
        limits = self.api.create_host_config(network_mode="none", cap_drop=["ALL"])
        more = {"host_config": limits, "labels": labels}
        made = self.api.create_container(image, entrypoint=command, command=[], **more)["Id"]
        try:
            self.api.start(made)
            status = self.api.wait(made, timeout=TIMEOUT)["StatusCode"]
            return int(status), self.api.logs(made).decode(errors="replace")
        except APIError as error:
            return 127, str(error.explanation)
        finally:
            self.api.remove_container(made, v=True, force=True)

    @_translated
    def images(self) -> list[dict[str, Any]]:
        """Return all images but those that are only steps of others."""
        return list(self.api.images())

    @_translated
    def history(self, name: str) -> list[dict[str, Any]]:
        """Return the layers of an image, the newest first."""
        return list(self.api.history(name))

    @_translated
    def name_image(self, name: str, further: str) -> bool:
        """Give an image a further name; say whether there is such an image."""
        repository, _, tag = further.rpartition(":")
        try:
            self.api.tag(name, repository, tag, force=True)
        except ImageNotFound:
            return False
        return True

    @_translated
    def unname_image(self, name: str) -> bool:
        """Take a name from an image, which goes with its last one; say whether that was possible.

        It is not when a container or another image needs it.
        """
        try:
            self.api.remove_image(name)
        except ImageNotFound:
            return False
        except APIError as error:
            if error.status_code != 409:
                raise
            return False
        return True

    @_translated
    def remove_image(self, name: str) -> None:
        """Remove an image that no container uses; does nothing when there is none."""
        with contextlib.suppress(ImageNotFound):
            self.api.remove_image(name)

    @_translated
    def architecture(self) -> str:
        """Return that of the engine's machine, such as ``amd64``, as images name it too."""
        return str(self.api.version()["Arch"])

    # --- containers --------------------------------------------------------------------------
    @_translated
    def bridge_address(self) -> str:
        """Return the address of this machine on the default network; empty when it has none."""
        for found in self.api.inspect_network("bridge")["IPAM"]["Config"] or ():
            if "Gateway" in found:
                return str(found["Gateway"])
            return str(ip_network(found["Subnet"])[1])  # which the engine takes then
        return ""

    @_translated
    def is_rootless(self) -> bool:
        """Say whether the engine is not root's, so that a container's root is its user."""
        return "name=rootless" in (self.api.info().get("SecurityOptions") or ())

    @_translated
    def create(self, name: str, image: str, limits: dict[str, Any], **more: Any) -> str:
        """Create a container; return its id."""
        made_of = self.api.create_host_config(**limits)
        try:
            made = self.api.create_container(image, name=name, host_config=made_of, **more)
        except ImageNotFound:
            raise BuildError(
                f"the image {image} was removed; deploy the app again with force=true"
            ) from None
        return str(made["Id"])

    @_translated
    def start(self, container: str, told: bytes | None) -> dict[str, Any]:
        """Start a container that reads `told`, if anything; return what the engine says of it."""
        if told is None:
            self.api.start(container)
            return dict(self.api.inspect_container(container))
        pipe = self.api.attach_socket(container, {"stdin": 1, "stream": 1})
        wire = pipe._sock
        try:
            self.api.start(container)
            wire.sendall(told)
        finally:
            pipe._response.close()  # it holds all but the socket
            wire.close()
        return dict(self.api.inspect_container(container))

    @_translated
    def printed(self, container: str, command: list[str]) -> str:
        """Return what a program prints that is run in a container; also why it could not be."""
        made = self.api.exec_create(container, command)
        return bytes(self.api.exec_start(made["Id"])).decode(errors="replace")

    @_translated
    def last_lines(self, container: str) -> str:
        """Return what a container printed last."""
        return bytes(self.api.logs(container, tail=LAST_LINES)).decode(errors="replace")

    @_translated
    def inspect(self, container: str) -> dict[str, Any] | None:
        """Return what the engine says of a container, None when there is none."""
        try:
            return dict(self.api.inspect_container(container))
        except NotFound:
            return None

    @_translated
    def signal(self, container: str, number: str) -> None:
        """Send a signal to a container; does nothing when it does not run."""
        try:
            self.api.kill(container, number)
        except APIError as error:
            if error.status_code not in (404, 409):
                raise

    @_translated
    def wait(self, container: str) -> None:
        """Return when a container does not run any more."""
        with contextlib.suppress(NotFound):
            self.api.wait(container, timeout=TIMEOUT)

    @_translated
    def remove(self, container: str) -> None:
        """Remove a container, also one that runs; does nothing when there is none."""
        try:
            self.api.remove_container(container, v=True, force=True)
        except APIError as error:
            if error.status_code not in (404, 409):  # gone, or on its way
                raise

    @_translated
    def containers(self, labels: Mapping[str, str], size: bool = False) -> list[dict[str, Any]]:
        """Return containers in every state that carry these labels; their `size` takes a while."""
        wanted = [f"{name}={value}" for name, value in labels.items()]
        return list(self.api.containers(all=True, size=size, filters={"label": wanted}))

    @_translated
    def usage(self, container: str) -> dict[str, Any]:
        """Return what a container uses at this moment, as the engine says it."""
        return dict(self.api.stats(container, stream=False, one_shot=True))

    # --- streams -----------------------------------------------------------------------------
    @_translated
    def events(self, labels: Mapping[str, str]) -> CancellableStream:
        """Return a stream of what happens to containers that carry these labels."""
        wanted = [f"{name}={value}" for name, value in labels.items()]
        filters = {"type": "container", "label": wanted}
        return self.api.events(decode=True, filters=filters)

    @_translated
    def output(self, container: str, since: int) -> CancellableStream:
        """Return a stream of pieces of a container's output, each with its time in front."""
        return self.api.logs(
            container, stream=True, follow=True, timestamps=True, since=since or None
        )


class Streams:
    """What is being read of the engine, to be closed from another thread."""

    def __init__(self) -> None:
        self._open: set[CancellableStream] = set()
        self.closed = False

    @contextlib.contextmanager
    def entered(self, stream: CancellableStream) -> Iterator[CancellableStream]:
        """Keep a stream while it is read."""
        self._open.add(stream)
        try:
            yield stream
        finally:
            self._open.discard(stream)
            _close(stream)

    def close(self) -> None:
        """End them all; who reads sees their end."""
        self.closed = True
        for stream in list(self._open):
            _close(stream)


def _close(stream: CancellableStream) -> None:
    with contextlib.suppress(OSError, DockerException, AttributeError):  # it has ended
        stream.close()


def _follow_build(lines: CancellableStream, progress: Progress) -> None:
    """Tell each step and what it prints; raise what the builder says when one fails."""
    output = BuildOutput(progress)
    for line in lines:
        if "error" in line:
            output.flush()
            raise BuildError(_why(output.step, line, output.last), list(output.last))
        output.take(line.get("stream", ""))


def _why(step: str, line: Mapping[str, Any], last: Iterable[str]) -> str:
    if (found := meaning("\n".join([line["error"], *last]))) is not None:
        return f"the image could not be built, {step} failed: {found}"
    status = line.get("errorDetail", {}).get("code")
    reason = f"exit status {status}" if status else plain(line["error"])
    return f"the image could not be built, {step} failed: {reason}" if step else reason
