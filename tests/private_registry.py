"""A private registry of images on 127.0.0.1 (Debian's docker-registry) with one user."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import docker

USER = "robot"
# bcrypt, as htpasswd -B writes it, which is all that a registry takes.
_HASHES = {
    "first-password": "$2y$05$abcdefghijklmnopqrstuuM3sQey8DZviRRkMjmk7wGr.7zlb4loC",
    "second-password": "$2y$05$abcdefghijklmnopqrstuuQQ3svipWaDLu5Kgwa3hvLrUP0FshBnK",
}
PASSWORD, OTHER = _HASHES
_CONFIG = """
version: 0.1
log: {level: info}
storage: {filesystem: {rootdirectory: FOLDER/data}, delete: {enabled: true}}
http: {addr: "127.0.0.1:0"}
auth: {htpasswd: {realm: test, path: FOLDER/htpasswd}}
"""


class Registry:
    """A registry that runs; `host` is how images are named that lie in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.password, self._written = "", 0
        self.accept(PASSWORD)
        config = folder / "config.yml"
        config.write_text(_CONFIG.replace("FOLDER", str(folder)))
        self._log = folder / "log"
        with self._log.open("w") as log:
            command = ["docker-registry", "serve", str(config)]
            environment = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.host = f"127.0.0.1:{self._port()}"

    def accept(self, password: str) -> None:
        """Accept this password of the user from now on, and no other."""
        self.password = password
        file = self._folder / "htpasswd"
        file.write_text(f"{USER}:{_HASHES[password]}\n")
        self._written = max(self._written + 10**9, time.time_ns())
        os.utime(file, ns=(self._written, self._written))  # it is read again when it is newer

    def _port(self) -> str:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self._process.poll() is None:
            if found := re.search(r"listening on 127\.0\.0\.1:(\d+)", self._log.read_text()):
                return found[1]
            time.sleep(0.02)
        raise RuntimeError(f"the registry does not start: {self._log.read_text()[-500:]}")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def remove_images(self, docker_host: str) -> None:
        """Remove from an engine what is named after this registry."""
        engine = docker.APIClient(docker_host)
        for image in engine.images():
            for name in (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())):
                if name.startswith(self.host):
                    with contextlib.suppress(docker.errors.APIError):  # gone with another name
                        engine.remove_image(name, force=True)
        engine.close()

    @property
    def entry(self) -> dict[str, dict[str, str]]:
        """What an image's `registries` say of it."""
        return {self.host: {"username": USER, "password": self.password}}

    def lose(self, name: str) -> None:
        """Forget all that a repository has."""
        shutil.rmtree(self._folder / "data/docker/registry/v2/repositories" / name)

    def offer(self, engine: docker.APIClient, name: str, dockerfile: str) -> str:
        """Put what a Dockerfile makes into it, and not into the engine; return its digest."""
        tag = f"{self.host}/{name}"
        lines = engine.build(fileobj=io.BytesIO(dockerfile.encode()), tag=tag, decode=True, rm=True)
        assert not [line for line in lines if "error" in line]
        auth = {"username": USER, "password": self.password}
        told = list(engine.push(tag, stream=True, decode=True, auth_config=auth))
        assert "aux" in told[-1], told
        engine.remove_image(tag, force=True)
        return str(told[-1]["aux"]["Digest"])
