"""Stored files: every protocol that uploads them, how they are read, and what bounds them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import PIL.Image
import psutil
import pytest
from click import UsageError
from fal_client import AsyncClient, SyncClient
from hypothesis import given
from hypothesis import strategies as st
from serving import Wire, control, deployed, small_file_system, with_key

from fal_notebook import cli, discovery
from fal_notebook.discovery import GatewayInfo
from fal_notebook.exceptions import DiskFullError
from fal_notebook.gateway.exchange import RefusedRequestError
from fal_notebook.gateway.storage import names, parts
from fal_notebook.gateway.storage.files import Files
from fal_notebook.gateway.storage.ranges import UnsatisfiableError, span
from fal_notebook.gateway.storage.table import StoredFile
from fal_notebook.gateway.storage.tickets import Tickets

MIB = 1024 * 1024


@pytest.fixture
def client(key: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncClient]:
    """The client; it has no close of its own, and makes one connection pool an upload."""
    client, opened, make = SyncClient(key=key), contextlib.ExitStack(), SyncClient._get_cdn_client
    monkeypatch.setattr(
        SyncClient, "_get_cdn_client", lambda self: opened.enter_context(make(self))
    )
    with opened:
        yield client
    client._client.close()


@pytest.fixture
def http(gateway: GatewayInfo, key: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, headers=with_key(key), trust_env=False) as http:
        yield http


@pytest.fixture
def stored(http: httpx.Client) -> Callable[..., str]:
    """Return the URL of new content."""

    def store(content: bytes, kind: str = "image/png", name: str = "a.png", **more: str) -> str:
        headers = {"content-type": kind, "x-fal-file-name": name, **more}
        answer = http.post("/storage/files", content=content, headers=headers)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["url"])

    return store


def lifecycle(**preference: Any) -> dict[str, str]:
    return {"x-fal-object-lifecycle": json.dumps(preference)}


# --- fal's own clients -----------------------------------------------------------------------
def test_fals_client_uploads_data_files_and_images(
    client: SyncClient, gateway: GatewayInfo, tmp_path: Path
) -> None:
    path = tmp_path / "päper.txt"
    path.write_text("text")
    image = PIL.Image.new("RGB", (4, 3))
    for url, kind, name in (
        (client.upload(b"\0data", "audio/wav", "a.wav"), "audio/wav", "a.wav"),
        (client.upload("text", "text/plain; charset=utf-8"), "text/plain; charset=utf-8", ".txt"),
        (client.upload(b"\0data", "audio/wav", repository="fal"), "audio/wav", "upload.bin"),
        (client.upload(b"\0data", "audio/wav"), "audio/wav", "upload.wav"),
        (client.upload(b"\0data", "application/x-mine"), "application/x-mine", "upload.bin"),
        (client.upload_file(tmp_path / shutil.copy(path, tmp_path / "b.txt")), "text/plain", ""),
        (client.upload_image(image, "png"), "image/png", "upload.png"),
    ):
        answer = httpx.get(url)
        assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
        assert url.startswith(f"{gateway.url}/storage/files/")
        assert url.endswith(name)
    assert answer.content.startswith(b"\x89PNG")


async def test_fals_async_client_uploads(key: str) -> None:
    client = AsyncClient(key=key)
    url = await client.upload(b"data", "video/mp4", "v.mp4")
    big = await client.upload(b"x" * 101 * MIB, "video/mp4")
    async with httpx.AsyncClient() as http:
        assert (await http.get(url)).content == b"data"
        assert (await http.get(big)).content == b"x" * 101 * MIB
    await (await client._client).aclose()


def test_fals_client_uploads_in_parts(client: SyncClient, tmp_path: Path) -> None:
    content = os.urandom(MIB) * 101
    (tmp_path / "big.bin").write_bytes(content)
    for url in (
        client.upload(content, "application/x-big", "big.bin"),
        client.upload_file(tmp_path / "big.bin"),
    ):
        assert httpx.get(url).content == content
        assert url.endswith("/big.bin")


def test_fals_javascript_protocol(http: httpx.Client) -> None:
    told = {"file_name": "a b.png", "content_type": "image/png"}
    query = {"storage_type": "fal-cdn-v3"}
    made = http.post("/rest/storage/upload/initiate", params=query, json=told).json()
    assert httpx.get(made["file_url"]).status_code == 404
    for _ in range(2):  # an answer may be lost
        assert httpx.put(made["upload_url"], content=b"data").status_code == 200
    assert made["file_url"].endswith("/a%20b.png")
    assert httpx.get(made["file_url"]).content == b"data"


def test_fals_javascript_protocol_in_parts(http: httpx.Client) -> None:
    told = {"file_name": "a.mp4", "content_type": "video/mp4"}
    made = http.post("/rest/storage/upload/initiate-multipart", json=told).json()
    url, _, query = made["upload_url"].partition("?")
    parts = [httpx.put(f"{url}/{n}?{query}", content=str(n) * n).json() for n in (3, 1, 2, 2)]
    assert [part["partNumber"] for part in parts] == [3, 1, 2, 2]
    for wrong, why in (
        (parts[:2], "part 2 is missing"),
        ([], "empty"),
        ("abc", "a list"),
        ([{"partNumber": 1e999, "etag": ""}], "a list"),
        ([{"partNumber": 1, "etag": "../../x"}], "not ours"),
        ([{"partNumber": 1, "etag": "0" * 32}], "part 1 is missing"),
    ):
        content = json.dumps({"parts": wrong})
        answer = httpx.post(f"{url}/complete?{query}", content=content)
        assert (answer.status_code, why in answer.text) == (400, True), answer.text
    for _ in range(2):
        answer = httpx.post(f"{url}/complete?{query}", json={"parts": parts})
        assert answer.status_code == 200
    assert httpx.get(made["file_url"]).text == "122333"
    assert httpx.put(f"{url}/4?{query}", content="4").status_code == 409


def test_runners_upload_with_their_own_key(gateway: GatewayInfo) -> None:
    source = """
def keep(text: str) -> dict:
    import json, os, urllib.request
    request = urllib.request.Request(os.environ["FAL_NOTEBOOK_URL"] + "/storage/files",
        text.encode(), {"Authorization": "Key " + os.environ["FAL_KEY"],
        "Content-Type": "text/plain", "x-fal-file-name": "t%C3%A4xt.txt"})
    return json.loads(urllib.request.urlopen(request).read())
"""
    with deployed(source) as handle:
        told = handle("words")
        assert (told["file_name"], told["file_size"]) == ("täxt.txt", 5)
        assert httpx.get(told["url"]).text == "words"


# --- reading ---------------------------------------------------------------------------------
def test_a_file_is_sandboxed_and_kept_as_it_came(stored: Callable[..., str]) -> None:
    for kind, how in (
        ("image/png", "inline"),
        ("video/mp4; codecs=avc1", "inline"),
        ("image/svg+xml", "attachment"),
        ("text/html", "attachment"),
    ):
        headers = httpx.get(stored(b"x", kind, "%C3%BC.x")).headers
        assert headers["content-type"] == kind
        assert headers["content-disposition"] == f"{how}; filename*=UTF-8''%C3%BC.x"
        assert "sandbox" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_ranges_head_and_etag(stored: Callable[..., str]) -> None:
    url, content = stored(bytes(range(100))), bytes(range(100))
    whole = httpx.get(url)
    etag = whole.headers["etag"]
    for asked, status, found in (
        ("bytes=0-9", 206, content[:10]),
        ("bytes=90-", 206, content[90:]),
        ("bytes=90-500", 206, content[90:]),
        ("bytes=-5", 206, content[-5:]),
        ("bytes=100-", 416, b""),
        ("bytes=-0", 416, b""),
        ("bytes=5-2", 200, content),
        ("bytes=0-1,5-6", 200, content),  # several: the whole file, as RFC 9110 allows
        ("bytes=-500", 206, content),
        ("bytes=0-0", 206, content[:1]),
        ("bytes=99999999999999999999-", 416, b""),
        ("bytes=x-1", 200, content),
        ("lines=1-2", 200, content),
    ):
        answer = httpx.get(url, headers={"range": asked})
        assert (answer.status_code, answer.content) == (status, found), asked
    answer = httpx.get(url, headers={"range": "bytes=-5", "if-range": etag})
    assert answer.headers["content-range"] == "bytes 95-99/100"
    answer = httpx.get(url, headers={"range": "bytes=-5", "if-range": '"other"'})
    assert (answer.status_code, answer.content) == (200, content)
    assert httpx.get(url, headers={"if-none-match": etag}).status_code == 304
    head = httpx.head(url)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "100", b"")
    assert httpx.get(stored(b"")).content == b""


@given(st.integers(0, 50), st.integers(0, 60) | st.none(), st.integers(0, 60) | st.none())
def test_a_range_is_never_outside_the_file(size: int, first: int | None, last: int | None) -> None:
    text = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    try:
        found = span(text, size)
    except UnsatisfiableError:
        return
    assert found is None or 0 <= found[0] < found[1] <= size


def test_urls_are_on_the_base_the_upload_came_by(gateway: GatewayInfo, key: str) -> None:
    with control(gateway) as api:
        tls = api.post("/api/gateway/tls").json()
    trusted = ssl.create_default_context(cafile=tls["bundle"])
    http = f"http://localhost:{urlsplit(gateway.url).port}"
    for base in (http, f"https://127.0.0.1:{tls['port']}", f"https://localhost:{tls['port']}"):
        with httpx.Client(
            base_url=base, headers=with_key(key), verify=trusted, trust_env=False
        ) as client:
            whole = client.post("/storage/files", content=b"x").json()["url"]
            token = client.post("/rest/storage/auth/token").json()["base_url"]
            begun = client.post("/cdn/files/upload/multipart").json()["access_url"]
            target = {"x-fal-target-url": "https://rest.fal.ai/storage/upload/initiate"}
            proxied = client.post("/proxy", headers=target).json()
            for url in (whole, token, begun, *proxied.values()):
                assert url.startswith(f"{base}/"), url
            assert client.put(proxied["upload_url"], content=b"y").status_code == 200
            assert (client.get(whole).text, client.get(proxied["file_url"]).text) == ("x", "y")


# --- who may ---------------------------------------------------------------------------------
def test_uploads_need_a_key_and_reading_needs_none(
    gateway: GatewayInfo, stored: Callable[..., str]
) -> None:
    url = stored(b"x")
    assert httpx.get(url).status_code == 200
    for method, path in (
        ("POST", "/storage/files"),
        ("POST", "/cdn/files/upload"),
        ("POST", "/cdn/files/upload/multipart"),
        ("POST", "/rest/storage/auth/token"),
        ("POST", "/rest/storage/upload/initiate"),
        ("POST", "/rest/storage/upload/initiate-multipart"),
        ("DELETE", urlsplit(url).path),
    ):
        for headers in ({}, with_key("a:b"), {"authorization": "Bearer tester.9999999999.00"}):
            answer = httpx.request(method, gateway.url + path, headers=headers)
            assert answer.status_code == 401, (path, headers)
    token = {"authorization": f"Bearer {gateway.token}"}
    assert httpx.delete(url, headers=token).status_code == 200
    assert httpx.get(url).status_code == 404


def test_old_files_are_pruned(own_gateway: Path) -> None:
    info = discovery.ensure(own_gateway)
    with control(info) as api:
        url = api.post("/storage/files", content=b"abc").json()["access_url"]
        assert cli.run(["storage", "prune"], "fal-notebook") == "files removed: 0 (0.0 MB)"
        for wrong in ("nan", "inf"):
            with pytest.raises(UsageError, match=f"^{wrong} is no amount"):
                cli.run(["storage", "prune", "--older-than", wrong], "fal-notebook")
            refused = api.post("/api/storage/prune", params={"older_than": wrong})
            assert refused.status_code == 422
        assert api.get(url).content == b"abc"
        told = cli.run(["storage", "prune", "--older-than", "0"], "fal-notebook")
        assert told == "files removed: 1 (0.0 MB)"
        assert api.get(url).status_code == 404
        made = api.post("/rest/storage/upload/initiate-multipart").json()
        path, _, query = made["upload_url"].partition("?")
        for number in (1, 2):
            api.put(f"{path}/{number}?{query}", content=bytes(60_000)).raise_for_status()
        told = cli.run(["storage", "prune", "--older-than", "0"], "fal-notebook")
        assert told == "files removed: 1 (0.1 MB)"
        assert list((own_gateway / "storage" / "parts").iterdir()) == []
        assert api.put(f"{path}/3?{query}", content=b"x").status_code == 404


def test_a_users_files_are_not_anothers_to_change(
    gateway: GatewayInfo, http: httpx.Client, stored: Callable[..., str]
) -> None:
    guest = cli.run(["keys", "create", "--user", "guest"], "fal-notebook").splitlines()[0]
    theirs, url = {**http.headers, **with_key(guest)}, stored(b"mine")
    begun = http.post("/cdn/files/upload/multipart", headers={"content-type": "a/b"}).json()
    parts = f"{begun['access_url']}/multipart/{begun['uploadId']}"
    bearer = httpx.post(f"{gateway.url}/rest/storage/auth/token", headers=theirs).json()["token"]
    for headers in (theirs, {"authorization": f"Bearer {bearer}"}):
        for method, path in (
            ("DELETE", url),
            ("PUT", f"{parts}/1"),
            ("POST", f"{parts}/complete"),
        ):
            answer = httpx.request(method, path, headers=headers, content=b"{}")
            assert (answer.status_code, "another user's" in answer.text) == (403, True), path
    part = http.put(f"{parts}/1", content=b"part").json()
    assert http.post(f"{parts}/complete", json={"parts": [part]}).status_code == 200
    assert (httpx.get(url).text, httpx.get(begun["access_url"]).text) == ("mine", "part")
    own = httpx.post(f"{gateway.url}/storage/files", content=b"x", headers=theirs).json()["url"]
    assert http.delete(own).status_code == 403  # an API key controls nobody else's files
    assert httpx.delete(own, headers=theirs).status_code == 200
    cli.run(["keys", "revoke", guest.partition(":")[0]], "fal-notebook")
    assert httpx.delete(url, headers=theirs).status_code == 401


def test_a_signed_upload_url_is_for_one_upload_and_expires(http: httpx.Client) -> None:
    one, other = (http.post("/rest/storage/upload/initiate").json() for _ in range(2))
    wrong = one["upload_url"].partition("?")[0] + "?" + other["upload_url"].partition("?")[2]
    for url in (wrong, one["upload_url"].partition("?")[0], one["upload_url"] + "0"):
        assert httpx.put(url, content=b"x").status_code == 403
    tickets, now = Tickets("secret"), time.time()
    assert tickets.admits("a", tickets.query("a", now + 1), now)
    assert not tickets.admits("b", tickets.query("a", now + 1), now)
    assert not tickets.admits("a", tickets.query("a", now), now)
    assert not tickets.admits("a", Tickets("").query("a", now + 1), now)
    assert tickets.user_of(tickets.token("me", now + 1), now) == "me"
    assert tickets.user_of(tickets.token("me", now), now) is None


# --- bad input -------------------------------------------------------------------------------
def test_no_name_leads_out_of_the_storage(
    gateway: GatewayInfo, http: httpx.Client, stored: Callable[..., str]
) -> None:
    path = urlsplit(stored(b"x")).path
    for bad in (
        "/storage/files/../store.db",
        "/storage/files/%2e%2e/store.db",
        f"{path}/../../../secrets.key",
        f"{path}%00",
        "/storage/files//etc/passwd",
        "/storage/files/%2Fetc%2Fpasswd",
        "/storage/files/..%5Cstore.db",
    ):
        with Wire(gateway) as wire:
            status, _, _ = wire.send(f"GET {bad} HTTP/1.1\nHost: GATEWAY\n\n").response()
        assert status == 400, bad
    for name in ("../x", "/etc/passwd", "a/../../b", "..\\x", "a%00b", "a%0Ab", "%2Fx", "%ff"):
        answer = http.post("/storage/files", content=b"", headers={"x-fal-file-name": name})
        assert answer.status_code == 400, name
        told = {"file_name": name.replace("%", "\0%")}
        assert http.post("/rest/storage/upload/initiate", json=told).status_code == 400, name
    assert names.file_name("folder/a.png", "") == "a.png"
    assert names.file_name("", "") == "upload.bin"
    assert len(names.file_name("a" * 500 + ".png", "")) == names.LONGEST_NAME


def test_what_was_put_in_the_place_of_a_stored_file_is_not_read(
    gateway: GatewayInfo, stored: Callable[..., str], private_state: Path
) -> None:
    url = stored(b"x")
    path = private_state / "storage" / "files" / url.split("/")[-2]
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.symlink_to(private_state / "gateway.json")
    assert httpx.get(url).status_code == 400
    path.unlink()
    os.mkfifo(path)  # a plain open would wait for somebody who writes
    assert httpx.get(url).json()["detail"] == "the stored file is no file any more"
    path.unlink()
    assert httpx.get(url).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "no type"},
        {"content-type": "a/" + "b" * 300},
        {"x-fal-object-lifecycle": "{"},
        {"x-fal-object-lifecycle": "[1]"},
        {"x-fal-object-lifecycle": "null"},
        {"x-fal-object-lifecycle-preference": "[]"},
        lifecycle(expiration_duration_seconds=0),
        lifecycle(expiration_duration_seconds="x"),
        {"x-fal-object-lifecycle": '{"expiration_duration_seconds": 1e400}'},
        lifecycle(initial_acl={"default": "forbid"}),
    ],
)
def test_a_header_that_cannot_be_kept_is_refused(
    http: httpx.Client, headers: dict[str, str]
) -> None:
    answer = http.post("/storage/files", content=b"x", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["detail"]


def test_other_methods_and_paths_are_refused(http: httpx.Client, stored: Any) -> None:
    assert http.put("/storage/files").status_code == 405
    assert http.post(urlsplit(stored(b"")).path).status_code == 405
    for path in ("/storage/", "/storage/files/0/x", "/rest/storage/x", "/cdn/x"):
        assert http.get(path).status_code == 404
    answer = http.post("/rest/storage/upload/initiate", content=b" " * (MIB + 1))
    assert (answer.status_code, "limit of 1048576 bytes" in answer.text) == (413, True)
    for body in (b"{", b"[]", b"[" * 100_000):
        assert http.post("/rest/storage/upload/initiate", content=body).status_code == 400


# --- bounds ----------------------------------------------------------------------------------
@pytest.fixture
def small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> Iterator[GatewayInfo]:
    """A gateway of its own: uploads up to 64 MB, 100 MB in all."""
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(tmp_path))
    monkeypatch.setenv("FAL_NOTEBOOK_MAX_UPLOAD", str(64 * MIB))
    monkeypatch.setenv("FAL_NOTEBOOK_STORAGE_QUOTA", str(100 * MIB))
    yield discovery.ensure(tmp_path)
    found = discovery.find(tmp_path)
    assert found is not None
    with control(found) as api:
        api.post("/api/gateway/stop")
    eventually(lambda: not psutil.pid_exists(found.pid))


def left(state: Path) -> list[Path]:
    return [path for path in (state / "storage").rglob("*") if path.is_file()]


def test_limit_and_quota(small: GatewayInfo, tmp_path: Path, eventually: Any) -> None:
    head = f"POST /storage/files HTTP/1.1\nHost: GATEWAY\nAuthorization: Bearer {small.token}\n"
    with Wire(small) as wire:  # it is refused before any of it is sent
        wire.send(f"{head}Content-Length: {64 * MIB + 1}\nExpect: 100-continue\n\n")
        assert wire.head()[0] == 413
    with Wire(small) as wire:  # or once it is above the limit; of the rest nothing is taken
        wire.send(f"{head}Transfer-Encoding: chunked\n\n")
        wire.send(b"%x\r\n" % (65 * MIB)).send(bytes(64 * MIB + 1))
        status, headers, _ = wire.response()
        assert (status, headers["connection"]) == (413, "close")
        assert wire.rest() == b""
    with control(small) as api:
        pieces = iter([bytes(MIB)] * 65)
        assert api.post("/storage/files", content=pieces).status_code == 413
        urls = [api.post("/storage/files", content=bytes(50 * MIB)).json()["url"] for _ in "ab"]
        answer = api.post("/storage/files", content=b"x")
        assert (answer.status_code, "storage_quota" in answer.text) == (507, True)
        assert api.post("/storage/files", content=iter([b"x"])).status_code == 507
        assert len(left(tmp_path)) == 2
        assert api.delete(urlsplit(urls[0]).path).status_code == 200
        assert api.post("/storage/files", content=b"x").status_code == 200
    with Wire(small) as wire:  # and one that is cut off leaves nothing
        wire.send(f"{head}Content-Length: {9 * MIB}\n\n").send(bytes(2 * MIB))
        eventually(lambda: len(left(tmp_path)) == 3)
    eventually(lambda: len(left(tmp_path)) == 2)


def test_a_restart_keeps_files_and_parts(small: GatewayInfo, tmp_path: Path) -> None:
    with control(small) as api:
        url = api.post("/storage/files", content=b"x").json()["url"]
        made = api.post("/rest/storage/upload/initiate-multipart").json()
    upload, _, query = made["upload_url"].partition("?")
    part = httpx.put(f"{upload}/1?{query}", content=bytes(60 * MIB)).json()
    other = httpx.put(f"{upload}/2?{query}", content=bytes(30 * MIB)).json()
    process = psutil.Process(small.pid)
    process.kill()
    process.wait(20)
    (tmp_path / "storage" / "incoming" / "left").write_bytes(b"x")
    again = discovery.ensure(tmp_path)
    assert (again.url, httpx.get(url).content) == (small.url, b"x")
    assert not (tmp_path / "storage" / "incoming" / "left").exists()
    assert httpx.put(f"{upload}/3?{query}", content=bytes(11 * MIB)).status_code == 507
    answer = httpx.post(f"{upload}/complete?{query}", json={"parts": [part, other]})
    assert answer.status_code == 413  # together
    assert httpx.post(f"{upload}/complete?{query}", json={"parts": [part]}).status_code == 200
    assert len(httpx.get(made["file_url"]).content) == 60 * MIB
    assert len(left(tmp_path)) == 2


def test_what_expires_is_gone_and_makes_room(tmp_path: Path) -> None:
    files, now = Files(tmp_path, quota=10), time.time()

    def add(name: str, expires_at: float | None, size: int = 4) -> StoredFile:
        files.room.take(size)
        path = files.incoming()
        path.write_bytes(bytes(size))
        return files.keep(StoredFile(name, "me", "x", "a/b", expires_at), path, size)

    old, kept = add("old", now - 1), add("kept", None)
    assert files.find("old") is None
    assert files.find("kept") == kept
    add("new", now + 60)  # there is no room for it but that of the old one
    assert not (tmp_path / "storage" / "files" / old.id).exists()
    with pytest.raises(DiskFullError, match="storage_quota=10"):
        files.room.take(4)
    assert files.room.used == 8
    stray = tmp_path / "storage" / "files" / "stray"
    stray.touch()
    files.prune()
    assert stray.exists()
    os.utime(stray, (now - 7200, now - 7200))
    files.table.put(StoredFile("begun", "me", "x", "a/b", None, created_at=now - 90_000))
    files.prune()
    assert not stray.exists()
    assert files.table.ids() == {"kept", "new"}
    files.close()
    for folder in ("files", "parts", "incoming"):  # a desktop leaves such things
        (tmp_path / "storage" / folder / ".DS_Store").mkdir()
    (tmp_path / "storage" / "parts" / "file").touch()
    again = Files(tmp_path, quota=10)
    assert again.room.used == 8
    again.prune()
    again.close()


async def test_an_upload_that_is_being_joined_is_not_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(tmp_path, quota=100)
    files.table.put(StoredFile("begun", "me", "x", "a/b", None))
    content = files.incoming()
    content.write_bytes(b"part")
    files.room.take(4)
    told = [{"partNumber": 1, "etag": files.parts.add("begun", 1, content)}]
    began, goes_on, join = threading.Event(), threading.Event(), parts._join

    def slow(paths: Sequence[Path], target: Path) -> None:
        began.set()
        goes_on.wait()
        join(paths, target)

    monkeypatch.setattr(parts, "_join", slow)
    joining = asyncio.create_task(files.parts.join("begun", told, files.incoming(), 100))
    await asyncio.to_thread(began.wait)
    assert files.remove_older(0) == (0, 0)
    goes_on.set()
    assert await joining == 4
    assert files.parts.uploads() == {}
    files.close()


def test_a_file_is_gone_for_its_readers_when_its_time_is_over(
    stored: Callable[..., str], eventually: Any
) -> None:
    url = stored(b"x", **lifecycle(expiration_duration_seconds=0.3))
    eventually(lambda: httpx.get(url).status_code == 404)


def test_the_lifetime_is_the_callers_else_the_setting() -> None:
    assert names.lifetime(None, 5) == 5
    assert names.lifetime(None, 0) is None
    assert names.lifetime(b'{"expiration_duration_seconds": 60}', 5) == 60
    assert names.lifetime(b'{"expiration_duration_seconds": 1e12}', 5) is None
    for number in (b"NaN", b"Infinity", b"1e400"):
        with pytest.raises(RefusedRequestError):
            names.lifetime(b'{"expiration_duration_seconds": %b}' % number, 5)


@pytest.mark.linux  # for a small file system
def test_a_full_disk_is_507_and_nothing_stays(small: GatewayInfo, tmp_path: Path) -> None:
    folder = tmp_path / "storage" / "incoming"
    with small_file_system(folder, "2m"):
        with control(small) as api:
            answer = api.post("/storage/files", content=bytes(5 * MIB))
            assert answer.status_code == 507, answer.text
        assert left(tmp_path) == []


def test_big_files_pass_without_being_held(gateway: GatewayInfo, http: httpx.Client) -> None:
    process, size = psutil.Process(gateway.pid), 300
    piece = os.urandom(MIB)
    answer = http.post("/storage/files", content=(piece for _ in range(20)), timeout=60)
    before = process.memory_info().rss
    answer = http.post("/storage/files", content=(piece for _ in range(size)), timeout=60)
    after_up = process.memory_info().rss
    with http.stream("GET", answer.json()["url"], timeout=60) as read:
        assert sum(map(len, read.iter_raw())) == size * MIB
    assert max(after_up, process.memory_info().rss) - before < 32 * MIB


# --- /data -----------------------------------------------------------------------------------
def test_all_runners_share_a_data_folder(gateway: GatewayInfo, private_state: Path) -> None:
    source = """
def write(text: str) -> str:
    import os, pathlib
    home = pathlib.Path(os.environ["HF_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    new = pathlib.Path(os.environ["FAL_DATA_DIR"], "new")
    new.write_text(text)
    os.replace(new, new.with_name("shared"))
    return str(home)
"""
    read = """
def look() -> str:
    import os, pathlib
    return pathlib.Path(os.environ["FAL_DATA_DIR"], "shared").read_text()
"""
    with deployed(source) as one, deployed(read) as other:
        folder = private_state / "data" / "tester"
        assert one("words") == str(folder / ".cache" / "huggingface")
        assert other() == "words"
        assert folder.stat().st_mode & 0o777 == 0o770  # of its user and the group of containers
