"""What is said when the Docker engine is not there, may not be used, refuses or goes away."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import DockerException
from inside import until
from serving import deployed

from fal_notebook import discovery, sync
from fal_notebook.backends import transfers
from fal_notebook.backends.build_output import LONGEST
from fal_notebook.backends.containers import RUNNER, Containers
from fal_notebook.backends.details import Detail
from fal_notebook.backends.docker import DockerBackend
from fal_notebook.backends.engine import Engine, Streams, _follow_build
from fal_notebook.backends.transfers import Transfer
from fal_notebook.exceptions import BuildError, DeployError, EngineError
from fal_notebook.handle import shared_client
from fal_notebook.image import Recipe

# docker-py leaves a socket that could not be connected to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
BASE = "python:{}.{}-slim".format(*sys.version_info)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def engine(docker_host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    engine = Engine()
    yield engine
    engine.close()


def build(engine: Engine, dockerfile: str) -> list[str]:
    steps: list[str] = []
    engine.build(Recipe("test", dockerfile, {}), steps.append, Streams(), anew=False)
    return steps


def test_without_an_engine_it_is_said_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    with pytest.raises(EngineError, match=r"no Docker engine at .*install one .*target=local"):
        Engine().image_id("python")


def test_an_engine_that_does_not_answer_is_to_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/s")  # nobody listens
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/s")
        with pytest.raises(EngineError, match="does not answer: start it"):
            Engine().image_id("python")


@pytest.mark.parametrize("wrapped", [False, True])
def test_without_permission_the_group_is_named(
    monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    refusal = PermissionError(13, "Permission denied")
    error = DockerException(f"Error: ('aborted', {refusal!r})") if wrapped else refusal

    class Refused(Engine):
        @property
        def api(self) -> None:  # type: ignore[override]
            raise error

    with pytest.raises(EngineError, match=r"usermod -aG docker"):
        Refused().image_id("python")


def test_steps_of_a_build_are_told(engine: Engine) -> None:
    steps = build(engine, f"FROM {BASE}\nRUN echo something\n")
    steps = [text for text in steps if not isinstance(text, Detail)]
    assert steps == [f"Step 1/2 : FROM {BASE}", "Step 2/2 : RUN echo something"]


def test_a_failing_step_is_named_with_its_status_and_last_lines(engine: Engine) -> None:
    command = "echo first; echo the reason >&2; exit 7"
    with pytest.raises(BuildError, match=r"Step 2/2 : RUN .* failed: exit status 7") as caught:
        build(engine, f"FROM {BASE}\nRUN {command}\n")
    assert sorted(caught.value.log) == ["first", "the reason"]


def test_a_dockerfile_that_is_none_is_refused_with_the_line(engine: Engine) -> None:
    with pytest.raises(BuildError, match=r"(?i)unknown instruction: nonsense"):
        build(engine, "FROM scratch\nNONSENSE x\n")


def test_a_base_image_that_cannot_be_had_is_named(engine: Engine) -> None:
    with pytest.raises(BuildError, match=r"localhost:1/none:1 cannot be pulled"):
        engine.pull("localhost:1/none:1", lambda line: None)


def test_what_is_not_there_is_none_and_is_removed_without_a_word(engine: Engine) -> None:
    assert engine.image_id("fal-notebook/none:0") is None
    assert engine.inspect("none") is None
    engine.signal("none", "SIGKILL")
    engine.remove("none")
    engine.remove_image("fal-notebook/none:0")


async def test_after_a_start_that_its_engine_missed_its_next_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> str:
        raise EngineError("away")

    answers = iter([away, away, lambda *_: "amd64"])
    monkeypatch.setattr("fal_notebook.backends.docker.RETRY", 0.01)
    monkeypatch.setattr(Engine, "image_id", away)
    monkeypatch.setattr(Engine, "remove", away)
    monkeypatch.setattr(Engine, "architecture", lambda engine: next(answers)())
    told = list[str]()
    backend = DockerBackend(tmp_path, lambda: told.append("it answers"))
    for name in ("one", "two"):
        spec: Any = SimpleNamespace(runner_id=name)
        placement: Any = SimpleNamespace(registries=dict)
        with pytest.raises(EngineError, match="away"):
            await backend.start(spec, {"image": "a@b"}, placement)
    assert told == []
    await until(lambda: told)
    await asyncio.sleep(0.05)
    assert told == ["it answers"]
    await backend.close()


def test_a_container_that_cannot_be_removed_does_not_hide_the_others(tmp_path: Path) -> None:
    class Stuck(Engine):
        def containers(self, labels: Any, size: bool = False) -> list[dict[str, Any]]:
            return [
                {"Id": name, "State": "exited", "Labels": {RUNNER: name}}
                for name in ("left over", "ours")
            ]

        def remove(self, container: str) -> None:
            raise BuildError("the Docker engine refused: device or resource busy")

    containers = Containers(Stuck(), "state", lambda: None)
    containers.expect("ours")
    containers.add("ours", "ours", str(tmp_path / "log"))
    containers.look()
    seen = containers.get("ours")
    assert seen is not None
    assert not seen.running


async def test_a_cancelled_build_ends_at_once_and_leaves_nothing(
    docker_host: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    backend, engine = DockerBackend(tmp_path), Engine()
    steps: list[str] = []
    sleeper = Recipe("test", f"FROM {BASE}\nLABEL sleeper=x\nRUN sleep 1000\n", {})

    def asleep() -> list[Any]:
        return [c for c in engine.api.containers(all=True) if "sleep 1000" in c["Command"]]

    images = backend._images
    make = images._built(sleeper, steps.append, False, {})
    build = asyncio.ensure_future(images._ensure(sleeper.tag, make))
    await until(asleep)
    build.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(build, 10)
    await until(lambda: not asleep())
    assert engine.image_id(sleeper.tag) is None
    await backend.close()
    engine.close()


@pytest.mark.parametrize(
    "dockerfile",
    [
        "RUN echo 'write error: No space left on device' >&2; exit 1",
        "RUN head -c 99999999 /dev/zero > /dev/full",
    ],
)
def test_a_full_disk_is_told_with_what_to_do(engine: Engine, dockerfile: str) -> None:
    with pytest.raises(BuildError, match=r"Step 2/2 .*disk .* is full: `%fal prune`") as caught:
        build(engine, f"FROM {BASE}\n{dockerfile}\n")
    assert "No space left on device" in "\n".join(caught.value.log)


def test_what_the_engine_says_itself_when_its_disk_is_full_is_told_alike() -> None:
    said = "Error processing tar file(exit status 1): write /x: no space left on device"
    with pytest.raises(BuildError, match="`%fal prune`"):
        _follow_build(iter([{"stream": "Step 1/2 : COPY a a\n"}, {"error": said}]), print)  # type: ignore[arg-type]


def followed(*chunks: str) -> tuple[BuildError, list[str]]:
    """Return how a build failed of which these pieces were told, and what was told on."""
    told = list[str]()
    pieces: Any = iter([*({"stream": chunk} for chunk in chunks), {"error": "it failed"}])
    with pytest.raises(BuildError) as caught:
        _follow_build(pieces, told.append)
    return caught.value, told


def test_the_last_lines_of_a_step_are_lines_however_they_came(engine: Engine) -> None:
    dots = "for i in $(seq 30); do printf .; sleep 0.03; done; printf end"
    with pytest.raises(BuildError) as caught:
        build(engine, f"FROM {BASE}\nRUN echo THE REASON; {dots}; false\n")
    assert caught.value.log == ["THE REASON", "." * 30 + "end"]


def test_pieces_of_lines_are_joined_and_shown_as_they_grow() -> None:
    error, told = followed("Step 1/1 : RUN x", "\n", "rea", "son\r\n\x1b[91mbad", "\n\x1b[0m", "un")
    assert error.log == ["reason", "bad", "un"]
    assert told == ["Step 1/1 : RUN x", "rea", "reason", "bad", "bad", "un"]


@pytest.mark.parametrize(
    "line", ["Step by step", "Step 1/2 : x", "Step 3/2 : x", "Step 2/9 : x", "Step 2/2: x"]
)
def test_a_step_is_not_named_after_what_it_prints(line: str) -> None:
    error, _ = followed("Step 1/2 : FROM a", "\n", f"{line}\n", "reason\n")
    assert str(error).startswith("the image could not be built, Step 1/2 : FROM a failed")
    assert error.log == [line, "reason"]


@pytest.mark.parametrize("line", [" ---> the reason", "Removing intermediate container of mine"])
def test_output_that_looks_like_the_builders_words_is_shown(line: str) -> None:
    error, _ = followed("Step 1/1 : RUN x", "\n", f"{line}\n")
    assert error.log == [line]


def test_what_the_builder_says_of_its_own_work_is_left_out() -> None:
    words = ("Using cache", "0123456789ab", "Running in 0123456789ab")
    removed = "Removing intermediate container 0123456789ab\n"
    own = [*(f" ---> {word}\n" for word in words), removed, " ---> Removed" + removed[8:]]
    error, told = followed("Step 1/2 : FROM a", "\n", *own, "Step 2/2 : RUN x", "\n", "un", *own)
    assert error.log == ["un"]
    assert told == ["Step 1/2 : FROM a", "Step 2/2 : RUN x", "un"]


def test_a_failing_step_is_named_by_the_builder_alone(engine: Engine) -> None:
    with pytest.raises(BuildError, match=r"Step 2/2 : RUN .* failed: exit status 1") as caught:
        build(engine, f"FROM {BASE}\nRUN echo 'Step by step'; false\n")
    assert caught.value.log == ["Step by step"]


def test_a_line_that_is_written_over_is_what_it_was_last() -> None:
    error, _ = followed("Step 1/1 : RUN x", "\n", "10%\r", "20%\r3", "0%\n", "done\n")
    assert error.log == ["30%", "done"]


def test_a_line_without_an_end_is_kept_in_part() -> None:
    error, _ = followed("Step 1/1 : RUN x", "\n", "first\n", *["." * 1000] * 100, "end")
    assert (error.log[0], len(error.log[1]), error.log[1][-4:]) == ("first", LONGEST, ".end")


def test_without_room_for_a_build_of_files_the_folder_is_named(
    engine: Engine, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    recipe = Recipe("test", f"FROM {BASE}\nCOPY a a\n", {"a": b"0" * 64 * 1024**2})
    with pytest.raises(BuildError, match=rf"{small_disk} is full"):
        engine.build(recipe, print, Streams(), anew=False)


def test_what_a_step_prints_is_told_as_its_details(engine: Engine) -> None:
    told = build(engine, f"FROM {BASE}\nRUN echo one {time.time()}; sleep 1; echo two\n")
    details = [text for text in told if isinstance(text, Detail)]
    assert "two" in details
    assert told.index("two") > next(n for n, text in enumerate(told) if text.startswith("Step 2/2"))


def test_how_far_a_pull_is_is_told_in_bytes_and_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "PAUSE", 0)
    told: list[str] = []
    transfer = Transfer("pulled", "a", None)
    moving = {"current": 3_000_000, "total": 4_000_000}
    transfer.take({"id": "one", "status": "Already exists"}, told.append)
    transfer.take({"id": "two", "status": "Pulling fs layer"}, told.append)
    transfer.take({"id": "two", "status": "Downloading", "progressDetail": moving}, told.append)
    assert told == ["1 of 1 layers", "1 of 2 layers", "1 of 2 layers, 3.0 of 4.0 MB"]
    assert [text.part for text in told if isinstance(text, Detail)] == [1.0, 0.5, 0.75]


def test_an_engine_that_hangs_holds_no_other_app_and_no_gateway(
    own_gateway: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_gateway / "docker").mkdir()  # so that an engine is asked from the beginning
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        with deployed("def stays(x: int): return x", target="local") as stays:
            with (
                pytest.raises(DeployError, match=r"the Docker engine at tcp://.* does not answer"),
                deployed("def never(x: int): return x", target="docker"),
            ):
                pass
            assert stays(2) == 2
        sync.wait(shared_client().stop_gateway())
        discovery.wait_until_gone(own_gateway)
