"""Frames: Python objects of another minor version are refused before they are unpickled."""

from __future__ import annotations

import asyncio
import errno
import io
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest

from fal_notebook import calls, sync
from fal_notebook.exceptions import PythonMismatchError, RemoteError
from fal_notebook.handle import Handle, shared_client
from fal_notebook.payload.manifest import python_minor
from fal_notebook.runner import frames
from fal_notebook.runner.secret_forms import hiding


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def foreign(content: bytes) -> bytes:
    """Return bytes as Python 3.99 makes them."""
    return content.replace(python_minor().encode() + b"\n", b"3.99\n")


def answer_of(content: bytes) -> list[tuple[Any, ...]]:
    async def collect() -> list[tuple[Any, ...]]:
        async def chunks() -> Any:
            yield content

        return [frame async for frame in frames.read(chunks())]

    return asyncio.run(collect())


def test_a_value_comes_back() -> None:
    assert frames.load(frames.dump({"a": [1, None]})) == {"a": [1, None]}


def test_a_call_of_another_python_is_refused_unread(tmp_path: Path) -> None:
    body = foreign(frames.dump_call((Trap(tmp_path / "sprung"),), {}))
    here = python_minor()
    with pytest.raises(PythonMismatchError, match=rf"Python 3\.99.*Python {here}.*json="):
        frames.load_call(body)
    assert not (tmp_path / "sprung").exists()


def test_bytes_without_a_head_are_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(PythonMismatchError):
        frames.load(pickle.dumps(Trap(tmp_path / "sprung")))
    assert not (tmp_path / "sprung").exists()


def test_a_result_of_another_python_is_refused_unread(tmp_path: Path) -> None:
    content = frames.dump(Trap(tmp_path / "sprung"))
    frame = pickle.dumps(("return", foreign(content)))
    [(kind, value)] = answer_of(struct.pack(">Q", len(frame)) + frame)
    with pytest.raises(PythonMismatchError, match=r"Python 3\.99"):
        calls._load("f", value)
    assert kind == "return"
    assert not (tmp_path / "sprung").exists()


def test_an_exception_of_another_python_comes_as_text() -> None:
    [(_, *content)] = answer_of(frames.raised(ValueError("no"), "Traceback …"))
    content[-1] = foreign(content[-1])
    error = frames.to_exception(*content)
    assert type(error) is RemoteError
    assert str(error) == "ValueError: no"


class ToldError(Exception):
    def __init__(self, told: Any = None) -> None:
        super().__init__()
        self.told = told


def noted(note: str) -> Exception:
    error = ToldError()
    vars(error)["__notes__"] = [note]  # as add_note does, from Python 3.11
    return error


HOLDERS = {
    "argument": ValueError,
    "attribute": lambda text: ToldError({"in": [text]}),
    "bytes": lambda text: ToldError(text.encode()),
    "note": noted,
    "within another": lambda text: ToldError([noted(text)]),
    "name": lambda text: type(text, (ToldError,), {})(),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_an_exception_that_holds_a_secret_comes_as_masked_text(holder: str) -> None:
    redact = hiding({"WORDS": 'größe "horse"'})
    for text, travels in (('größe "horse"', False), ("plain", True)):
        [(_, *content)] = answer_of(frames.raised(HOLDERS[holder](text), "Traceback …", redact))
        assert "horse" not in str(content)
        assert (type(frames.to_exception(*content)) is not RemoteError) == travels


class CodedError(Exception):
    def __init__(self, code: int, why: str) -> None:
        super().__init__(f"{code}: {why}")
        self.code = code


class QuietError(CodedError):
    pass


class NamedError(ValueError):
    def __init__(self, *, name: str) -> None:
        self.name = name


class SlottedError(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__("slotted")
        self.code = code


class LackingError(FileNotFoundError):
    def __init__(self, path: str) -> None:
        super().__init__(errno.ENOENT, "lacking", path)


class ModuleError(ImportError):
    def __init__(self, module: str) -> None:
        super().__init__("no module", name=module)


ERRORS = [
    (CodedError(3, "no"), ("args", "code")),
    (QuietError(3, "no"), ("args", "code")),
    (NamedError(name="n"), ("args", "name")),
    (SlottedError(4), ("args", "code")),
    (LackingError("/x"), ("args", "errno", "filename")),
    (ModuleError("m"), ("args", "name")),
]


@pytest.mark.parametrize(("error", "parts"), ERRORS)
@pytest.mark.parametrize("within", [False, True])
def test_an_exception_that_takes_other_arguments_than_its_args_travels(
    error: Exception, parts: tuple[str, ...], within: bool
) -> None:
    sent = RuntimeError([error]) if within else error
    [(_, *content)] = answer_of(frames.raised(sent, "Traceback …"))
    came: Any = frames.to_exception(*content)
    came = came.args[0][0] if within else came
    assert type(came) is type(error)
    for part in parts:
        assert getattr(came, part) == getattr(error, part)


class OuterError(Exception):
    class InnerError(Exception):
        pass


OuterError.__qualname__ = "\ud800"


def test_how_an_answer_ends_is_told_unread(tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    failed, fine = frames.raised(OuterError.InnerError(), "T" * 100_000), frames.returned(trap)
    for content, raised in (
        (failed, "InnerError"),
        (frames.raised(OuterError(), ""), "?"),
        (frames.opened() + frames.item(trap) + frames.item("raise") + failed, "InnerError"),
        (fine, ""),
        (frames.opened() + fine, ""),
        (frames.opened(), ""),
        (failed + frames.returned("raise"), ""),
        (failed[:100], "InnerError"),
        (failed[:30], ""),
        (b"", ""),
        (b"{}", ""),
        (b"\xff" * 100, ""),
        (b"nothing of ours, by whoever says so", ""),
    ):
        assert frames.raised_in(io.BytesIO(content)) == raised, content[:50]
        path = tmp_path / "answer"
        path.write_bytes(content)
        with path.open("rb") as file:
            assert frames.raised_in(file) == raised
    assert not (tmp_path / "sprung").exists()


def test_an_app_refuses_a_call_of_another_python_in_one_sentence(shell) -> None:
    shell.run("%%fal_function wait=true\ndef taken(f): return f(1)")
    handle: Handle = shell["taken"]
    body = foreign(frames.dump_call((lambda y: y,), {}))

    async def call() -> Any:
        return await calls.call(shared_client(), handle.owner, handle.name, body)

    with pytest.raises(PythonMismatchError, match=r"Python 3\.99, which sent them") as caught:
        sync.wait(call())
    assert caught.value.__cause__ is None
    assert handle(lambda y: y + 1) == 2, "its runner still serves"
