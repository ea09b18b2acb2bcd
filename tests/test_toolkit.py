"""The toolkit: files that go to the storage and come back, models, downloads, the rest."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest
from pydantic import BaseModel, ValidationError
from runner_bench import define, notebook
from serving import control

import fal_notebook as fal
from fal_notebook import toolkit
from fal_notebook.discovery import GatewayInfo
from fal_notebook.toolkit import kv
from fal_notebook.toolkit.folders import data_folder
from fal_notebook.toolkit.utils.retry import retry


def test_bytes_and_paths_become_files_that_anybody_reads(
    gateway: GatewayInfo, tmp_path: Path
) -> None:
    assert toolkit.Audio.from_bytes(b"", "audio/wav").file_name.endswith(".wav")
    made = toolkit.File.from_bytes(b"{}", file_name="a b.json")
    with pytest.raises(TypeError, match="takes bytes, no str"):
        toolkit.File.from_bytes("text")
    assert made.content_type == "application/json"
    reply = httpx.get(made.url)
    assert (reply.content, reply.headers["content-type"]) == (b"{}", "application/json")
    path = tmp_path / "x.png"
    path.write_bytes(b"png")
    image = asyncio.run(toolkit.Image.from_path_async(path))
    assert (image.content_type, image.file_size, image.as_bytes()) == ("image/png", 3, b"png")
    assert image.save(tmp_path / "back").read_bytes() == b"png"
    size = toolkit.ImageSize(width=2, height=1)
    ways = [("image/webp",), ("webp",)], [{"content_type": "image/webp"}, {"format": "webp"}]
    for given, named in [*((way, {}) for way in ways[0]), *(((), way) for way in ways[1])]:
        image = asyncio.run(toolkit.Image.from_bytes_async(b"webp", *given, **named, size=size))
        assert (image.content_type, image.width, image.height) == ("image/webp", 2, 1)
    with pytest.raises(FileExistsError):
        image.save(path)
    with pytest.raises(FileNotFoundError):
        toolkit.File.from_path(tmp_path / "none")


def test_a_reserved_file_gets_its_bytes_later(gateway: GatewayInfo) -> None:
    pending = toolkit.File.reserve("text/plain")
    assert pending.file_name.endswith(".txt")
    made = pending.complete(b"late")
    assert httpx.get(pending.url).content == b"late"
    assert made.file_size == 4


def test_images_go_through_pillow(gateway: GatewayInfo) -> None:
    made = toolkit.Image.from_pil(PIL.Image.new("RGB", (4, 2), "red"))
    assert (made.width, made.height, made.content_type) == (4, 2, "image/png")
    back = toolkit.Image(url=made.url).to_pil()
    assert (back.size, back.getpixel((0, 0))) == ((4, 2), (255, 0, 0))


@pytest.mark.parametrize(
    ("mode", "format", "reason"),
    [("RGBA", "jpeg", "cannot write mode RGBA as JPEG"), ("RGB", "picture", "no such format")],
)
def test_an_image_that_cannot_be_written_says_why(mode: str, format: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"of mode {mode} as {format}: .*{reason}; give another"):
        toolkit.Image.from_pil(PIL.Image.new(mode, (4, 2)), format=format)


def test_a_compressed_file_gives_what_is_in_it(gateway: GatewayInfo) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "A")
    made = toolkit.CompressedFile.from_bytes(buffer.getvalue(), "application/zip")
    assert [path.read_text() for path in made] == ["A"]
    assert [path.name for path in made.glob("*.txt")] == ["a.txt"]
    url = {"url": made.url}
    assert [path.read_text() for path in toolkit.CompressedFile(**url)] == ["A"]
    assert [path.read_text() for path in toolkit.CompressedFile(**url).glob("*")] == ["A"]


def test_a_file_is_kept_as_long_as_its_author_says(gateway: GatewayInfo, eventually: Any) -> None:
    kept = {"object_lifecycle_preference": {"expiration_duration_seconds": 1}}
    image = PIL.Image.new("RGB", (4, 2), "red")
    files = [
        toolkit.File.from_bytes(b"x", save_kwargs=kept),
        toolkit.Image.from_pil(image, save_kwargs=kept),
    ]
    for file in files:
        eventually(lambda url=file.url: httpx.get(url).status_code == 404)


class Given(BaseModel):
    file: toolkit.File


def test_an_input_is_a_url_too() -> None:
    assert Given.model_validate({"file": "https://a.b/c"}).file.url == "https://a.b/c"
    assert Given.model_validate({"file": "data:text/plain,x"}).file.url == "data:text/plain,x"
    with pytest.raises(ValidationError, match="value must be a valid URL"):
        Given.model_validate({"file": "ftp://a"})


class Ordered(toolkit.FalBaseModel):
    FIELD_ORDERS = ["late"]  # noqa: RUF012
    early: int = 1
    late: str = toolkit.ImageField(ui={"important": True})
    secret: bool = toolkit.Hidden(toolkit.Field(default=False))


def test_models_say_how_they_are_shown() -> None:
    properties = Ordered.model_json_schema()["properties"]
    assert list(properties) == ["late", "early", "secret"]
    assert properties["late"]["ui"] == {"field": "image", "important": True}
    assert properties["secret"]["ui"] == {"hidden": True}
    assert toolkit.Image.model_json_schema()["ui"] == {"field": "image"}
    with pytest.raises(ValueError, match="must have a default"):
        toolkit.Hidden(toolkit.Field())


def test_sizes_have_names() -> None:
    assert toolkit.get_image_size("landscape_4_3").width == 1024
    for odd in ("huge", {"width": 3}):
        with pytest.raises(TypeError, match="Invalid value for ImageSize"):
            toolkit.get_image_size(odd)  # type: ignore[arg-type]


def test_the_store_keeps_texts_until_they_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    store = toolkit.KVStore("one")
    store.set("k", "v", ttl=60)
    assert (store.get("k"), toolkit.KVStore("two").get("k")) == ("v", None)
    later = time.time() + 61
    monkeypatch.setattr(kv.time, "time", lambda: later)
    assert store.get("k") is None
    store.delete("k")
    with pytest.raises(toolkit.KVStoreException, match="ttl=5"):
        store.set("k", "v", ttl=5)


def test_downloads_go_below_the_shared_storage(gateway: GatewayInfo) -> None:
    made = toolkit.File.from_bytes(b"12345", file_name="w.bin")
    path = toolkit.download_file(made.url, "weights")
    assert path == data_folder() / "weights" / "w.bin"
    assert path.read_bytes() == b"12345"
    assert toolkit.download_model_weights(made.url).read_bytes() == b"12345"
    with pytest.raises(toolkit.DownloadError, match="404"):
        toolkit.download_file(f"{gateway.url}/storage/files/none/x", "weights")
    with pytest.raises(toolkit.DownloadError, match="no http, https or data URL"):
        toolkit.download_file("file:///etc/passwd", "weights")


def test_a_shared_path_is_another_where_the_storage_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = pickle.dumps(toolkit.FAL_MODEL_WEIGHTS_DIR / "x")
    monkeypatch.setenv("FAL_DATA_DIR", "/elsewhere")
    assert pickle.loads(pickled) == Path("/elsewhere/.fal/model_weights/x")


def test_retry_calls_again_and_gives_up() -> None:
    calls: list[int] = []

    @retry(max_retries=3, base_delay=0)
    def fail() -> None:
        calls.append(1)
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        fail()
    assert len(calls) == 3


def test_an_app_answers_an_image_of_its_own(gateway: GatewayInfo) -> None:
    source = """
from fastapi import Request
from pydantic import BaseModel
import fal_notebook as fal
from fal_notebook.toolkit import Image, FAL_PERSISTENT_DIR
class Made(BaseModel):
    image: Image
class Painter(fal.App):
    @fal.endpoint("/generate")
    def generate(self, name: str, request: Request) -> Made:
        FAL_PERSISTENT_DIR.mkdir(parents=True, exist_ok=True)
        path = FAL_PERSISTENT_DIR / name
        path.write_bytes(b"pixels")
        return Made(image=Image.from_path(path, request=request))
"""
    with notebook():
        app = fal.deploy(define(source)["Painter"], wait=True)
        try:
            with control(gateway) as client:
                url = f"/run/{app.owner}/painter/generate"
                answer: Any = client.post(url, json={"name": "a.png"}).json()["image"]
            assert answer["content_type"] == "image/png"
            assert httpx.get(answer["url"]).content == b"pixels"
            assert "file_data" not in json.dumps(answer)
        finally:
            app.delete()
