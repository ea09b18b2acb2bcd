"""Builds by BuildKit, which the `docker` command speaks to: for what the classic builder lacks.

Values of build secrets are files of a private folder, which ends with the build.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fal_notebook.backends import children, programs
from fal_notebook.backends.details import Detail
from fal_notebook.backends.engine_words import failure
from fal_notebook.exceptions import BuildError
from fal_notebook.image import LABEL, UserImage

# Of a failed build, as many of its last lines are told.
LAST_LINES = 20

_LINE = re.compile(r"#(\d+) (.*)")
_STEP = re.compile(r"\[(?:\S+ )?(\d+)/(\d+)\] (.*)")
_OUTPUT = re.compile(r"\d+\.\d+ (.*)")
_STATUS = re.compile(r"exit code: (\d+)$")
_WRAPPED = re.compile(
    r"^.*?(?=dockerfile parse error|Dockerfile parse error)|^(failed to \w+.*?: )+"
)
_FRONTEND = re.compile(r"docker/dockerfile")
_SYNTAX = re.compile(r"^#\s*syntax\s*=.*", re.IGNORECASE)
# Of the gateway's environment, what the command may see.
_KEPT = re.compile(
    r"PATH|HOME|TMPDIR|LANG|LC_.*|DOCKER_(CONFIG|CERT_PATH|TLS.*)|(HTTPS?|NO)_PROXY", re.I
)


class Steps:
    """Reads what BuildKit tells, and tells the steps on as the classic builder does."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._names: dict[str, str] = {}
        self._output: dict[str, deque[str]] = {}
        self._said: deque[str] = deque(maxlen=LAST_LINES)
        self._failed: tuple[str, str] | None = None

    def take(self, line: str) -> None:
        """Take one line."""
        match = _LINE.match(line)
        if match is None:
            self._said.append(line)
            return
        vertex, text = match.groups()
        if text.startswith("ERROR: "):
            self._failed = vertex, text.removeprefix("ERROR: ")
        elif (output := _OUTPUT.match(text)) and vertex in self._names:
            self._output.setdefault(vertex, deque(maxlen=LAST_LINES)).append(output[1])
            self._progress(Detail(output[1]))
        elif (step := _STEP.match(text)) and vertex not in self._names:
            self._names[vertex] = f"Step {step[1]}/{step[2]} : {step[3]}"
            self._progress(self._names[vertex])

    def error(self) -> BuildError:
        """Return why the build failed, with the failing step and its last lines."""
        vertex, reason = self._failed or ("", "")
        if vertex not in self._names:
            said = _WRAPPED.sub("", self._said[-1]) if self._said else ""
            return BuildError(failure("", said or reason or "docker build said nothing", []))
        lines = list(self._output.get(vertex, ()))
        status = _STATUS.search(reason)
        why = f"exit status {status[1]}" if status else reason
        return BuildError(failure(self._names[vertex], why, lines), lines)

    @property
    def lacks_frontend(self) -> bool:
        """Whether what a ``# syntax=`` line names could not be fetched."""
        return not self._names and any(map(_FRONTEND.search, self._said))


async def build(
    own: UserImage,
    host: str,
    work: Path,
    secrets: Mapping[str, str],
    docker_config: Path | None,
    progress: Callable[[str], None],
    anew: bool,
) -> None:
    """Build a user's image and tag it; a build that is cancelled is broken off.

    Parameters
    ----------
    host : str
        Where the engine is.
    work : Path
        Where the private folder of the build is made.
    secrets : mapping of str to str
        Values of the build's secrets by name.
    docker_config : Path, optional
        A folder with credentials of registries.

    Raises
    ------
    BuildError
        With the failing step and its last lines, or when there is no command for it.
    """
    command, environment = await _command(), _environment(host, docker_config)
    with tempfile.TemporaryDirectory(dir=work) as private:  # 0700
        folder = Path(private)
        await asyncio.to_thread(_write, own, secrets, folder)
        arguments = [command, "build", *_arguments(own, secrets, folder, anew)]
        steps = Steps(progress)
        status = await programs.run(arguments, folder, environment, steps.take)
        if status and steps.lacks_frontend and _without_syntax(folder):
            steps = Steps(progress)
            status = await programs.run(arguments, folder, environment, steps.take)
        if status:
            raise steps.error()


def _write(own: UserImage, secrets: Mapping[str, str], folder: Path) -> None:
    (folder / "context").mkdir()
    own.write_folder(folder / "context")
    (folder / "Dockerfile").write_text(own.rewritten[0])
    (folder / "Dockerfile.dockerignore").write_text("# The context holds no more than it takes.\n")
    for number, value in enumerate(secrets.values()):
        with open(_secret(folder, number), "x", opener=_private) as file:
            file.write(value)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _secret(folder: Path, number: int) -> str:
    return str(folder / f"secret-{number}")


def _arguments(
    own: UserImage, secrets: Mapping[str, str], folder: Path, anew: bool
) -> Iterator[str]:
    yield from ("--progress=plain", "--tag", own.tag, "--label", f"{LABEL}=user")
    yield from ("--file", str(folder / "Dockerfile"))
    yield from ("--no-cache",) if anew else ()
    for name, value in own.build_args.items():
        yield from ("--build-arg", f"{name}={value}")
    for number, name in enumerate(secrets):
        yield from ("--secret", f"id={name},src={_secret(folder, number)}")
    yield str(folder / "context")


def _without_syntax(folder: Path) -> bool:
    """Take the ``# syntax=`` line out; say whether there was one."""
    path = folder / "Dockerfile"
    before = path.read_text()
    lines = ["#" if _SYNTAX.match(line) else line for line in before.splitlines()]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path.read_text() != before


def _environment(host: str, docker_config: Path | None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}
    builder = {"DOCKER_BUILDKIT": "1", "BUILDX_BUILDER": "default"}
    plain = {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1", "NO_COLOR": "1", "DOCKER_HOST": host}
    if docker_config is not None:
        _link_plugins(docker_config)
        kept["DOCKER_CONFIG"] = str(docker_config)
    return {**kept, **builder, **plain}


def _link_plugins(docker_config: Path) -> None:
    """Let the command find the plugins that lie in the user's configuration."""
    own = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker", "cli-plugins")
    with contextlib.suppress(OSError):
        if own.is_dir():
            (docker_config / "cli-plugins").symlink_to(own)


async def _command() -> str:
    """Return the first `docker` command that can use BuildKit.

    Raises
    ------
    BuildError
        When there is none.
    """
    for folder in os.get_exec_path():
        found = shutil.which("docker", path=folder)
        if found and await _knows_buildkit(found):
            return found
    raise BuildError(
        "the Dockerfile needs BuildKit (secrets, RUN --mount, COPY --chmod and the like), and "
        "there is no `docker` command here that has it: install Docker's buildx plugin (on Debian "
        "`apt-get install docker-buildx-plugin` or docker-buildx)"
    )


async def _knows_buildkit(command: str) -> bool:
    """Say whether a command has the plugin, or is so old that it needs none."""
    if await _output(command, "buildx", "version"):
        return True
    version = re.search(r"version (\d+)\.", await _output(command, "--version"))
    return version is not None and 18 < int(version[1]) < 23


async def _output(*command: str) -> str:
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await children.start(*command, stdin=nothing, stdout=pipe, stderr=nothing)
    except OSError:
        return ""
    output, _ = await process.communicate()
    return "" if process.returncode else output.decode(errors="replace")
