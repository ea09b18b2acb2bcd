"""Webhooks: where they may go, what they say, who signed them, and when they are tried again."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import datetime
import hashlib
import json
import resource
import sqlite3
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import httpcore
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from fal_notebook.exceptions import StoreError, WebhookDeliveryError, WebhookUrlError
from fal_notebook.gateway.queue.content import Spool
from fal_notebook.gateway.queue.journal import Journal
from fal_notebook.gateway.queue.records import Records
from fal_notebook.gateway.queue.table import Answer, QueuedRequest
from fal_notebook.gateway.store import Store
from fal_notebook.gateway.vault import Vault
from fal_notebook.gateway.webhooks import client as client_module
from fal_notebook.gateway.webhooks import delivery as delivery_module
from fal_notebook.gateway.webhooks import flights, message, table, targets
from fal_notebook.gateway.webhooks.client import Client
from fal_notebook.gateway.webhooks.delivery import Deliverer, next_attempt
from fal_notebook.gateway.webhooks.sender import Sender
from fal_notebook.gateway.webhooks.signing import Signer
from fal_notebook.gateway.webhooks.table import Delivery, DeliveryTable

T = TypeVar("T")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
REFUSED = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"


class Target:
    """A real server that keeps what it got; `answer` writes the reply."""

    def __init__(
        self,
        answer: bytes | Callable[[asyncio.StreamWriter], Awaitable[None]],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answer = answer
        self.tls = tls
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self._open: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.append(writer)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append((head[0], headers, body))
        with contextlib.suppress(ConnectionError):
            if isinstance(self.answer, bytes):
                writer.write(self.answer)
                await writer.drain()
            else:
                await self.answer(writer)
        writer.close()

    async def __aenter__(self) -> Target:
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/hook?a=1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.close()
        for writer in self._open:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def silence(writer: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.Event().wait()


async def drip(writer: asyncio.StreamWriter) -> None:
    """Answer at once, then send one byte after another without an end."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def nothing() -> tuple[dict[str, str], bytes]:
    """Make an empty message."""
    return {}, b""


class Names:
    """A resolver; each name has its answers, one a question, the last one for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        answers = self.answers.get(host.replace(".", "_"))
        if answers is None:
            raise OSError("no such name")
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Detour(httpcore.AnyIOBackend):
    """The network, but each address is a port of this machine; notes what was asked for."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connected: list[str] = []

    async def connect_tcp(self, host: str, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        self.connected.append(host)
        return await super().connect_tcp("127.0.0.1", self.port)


async def eventually(condition: Callable[[], object], seconds: float = 10) -> None:
    """Return when the condition holds; fail after a while."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.005)


# Where a webhook may go


@pytest.mark.parametrize(
    "url",
    [
        "",
        "not a url",
        "ftp://example.com/",
        "//example.com/hook",
        "http://",
        "http:///hook",
        "http://user:secret@example.com/",
        "http://@example.com/",
        "http://127.0.0.1\\@example.com/",
        "http://example.com:99999/",
        "http://example.com:0/",
        "http://example.com:port/",
        "http://exa mple.com/",
        "http://exa%00mple.com/",
        "http://example.com/a\r\nx: y",
        "http://example.com/\ta",
        "http://a..b/",
        f"http://{'a' * 64}.com/",
        "http://[fe80::1%25eth0]/",
        "http://[nonsense]/",
        "http://example.com/ä",
    ],
)
async def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(WebhookUrlError) as refused:
        await targets.check(url, "")
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "localhost",
        "127.0.0.1.",
        "LOCALHOST.",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.9",
        "192.88.99.1",
        "198.18.0.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fc00::1]",
        "[fec0::1]",
        "[ff02::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:8.8.8.8]",
        "[::127.0.0.1]",
        "[2002:7f00:1::]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::7f00:1]",
        "[2001:0:7f00:1::]",
        "[2001:db8::1]",
        "[100::1]",
    ],
)
async def test_an_address_that_is_not_public_is_refused(host: str) -> None:
    with pytest.raises(WebhookUrlError, match="private or reserved"):
        await targets.check(f"http://{host}:8080/hook", "")


@pytest.mark.parametrize("host", ["93.184.216.34", "[2606:2800:220:1::1]", "8.8.8.8"])
async def test_a_public_address_is_accepted(host: str) -> None:
    await targets.check(f"https://{host}/hook", "")


@given(st.ip_addresses(v=4))
def test_no_private_address_is_called_public(address: Any) -> None:
    if address.is_private or address.is_multicast or address.is_loopback:
        assert not targets.is_public(str(address))


async def test_one_private_address_among_public_ones_is_refused() -> None:
    names = Names(example_com=[["93.184.216.34", "10.0.0.1"]])
    with pytest.raises(WebhookUrlError, match=r"example\.com") as refused:
        await targets.check("http://example.com/", "", names)
    assert "10.0.0.1" not in str(refused.value)  # the caller does not learn the inner network


async def test_a_name_that_does_not_resolve_now_is_accepted_at_submit() -> None:
    await targets.check("https://nowhere.example.com/", "", Names())


async def test_a_name_that_takes_long_to_resolve_is_accepted_at_submit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hangs(host: str, port: int) -> list[str]:
        return await asyncio.Event().wait() and []

    monkeypatch.setattr(targets, "CHECK_TIMEOUT", 0.01)
    await targets.check("https://example.com/", "", hangs)


@pytest.mark.parametrize(
    ("allow", "url", "accepted"),
    [
        ("127.0.0.1", "http://127.0.0.1:9/", True),
        ("127.0.0.1:9", "http://127.0.0.1:9/", True),
        ("127.0.0.1:9", "http://127.0.0.1:10/", False),
        ("a, LocalHost:80 ,b", "http://localhost/", True),
        ("localhost:443", "https://LOCALHOST/", True),
        ("[::1]:8", "http://[::1]:8/", True),
        ("[::1]", "http://[::1]:8/", True),
        ("localhost", "http://127.0.0.1/", False),
        ("", "http://localhost/", False),
        (",", "http://localhost/", False),
    ],
)
async def test_a_listed_host_may_be_private(allow: str, url: str, accepted: bool) -> None:
    if accepted:
        await targets.check(url, allow)
    else:
        with pytest.raises(WebhookUrlError, match="webhook_allow"):
            await targets.check(url, allow)


# The guarded client


async def test_the_checked_address_is_connected_and_the_name_kept() -> None:
    async def make() -> tuple[dict[str, str], bytes]:
        return {"x-a": "b"}, b"{}"

    names = Names(example_com=[["93.184.216.34"]])
    async with Target(OK) as target:
        network = Detour(target.port)
        client = Client("", resolve=names, network=network)
        assert await client.post("http://example.com:81/hook?a=1", make) == 200
    ((line, headers, body),) = target.requests
    assert network.connected == ["93.184.216.34"]
    assert (line, headers["host"], body) == ("POST /hook?a=1 HTTP/1.1", "example.com:81", b"{}")
    assert headers["x-a"] == "b"


async def test_a_name_that_turns_private_between_check_and_connect_gains_nothing() -> None:
    names = Names(example_com=[["93.184.216.34"], ["127.0.0.1"]])
    async with Target(OK) as target:
        network = Detour(target.port)
        await Client("", resolve=names, network=network).post("http://example.com/", nothing)
        assert names.asked == ["example.com"]
        assert network.connected == ["93.184.216.34"]
        with pytest.raises(WebhookUrlError):  # the next delivery asks again, and is refused
            await Client("", resolve=names, network=network).post("http://example.com/", nothing)
    assert network.connected == ["93.184.216.34"]


async def test_the_next_address_is_tried_when_one_is_dead() -> None:
    class HalfDead(Detour):
        async def connect_tcp(self, host: str, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
            if host.startswith("2606"):
                raise httpcore.ConnectError("no route")
            return await super().connect_tcp(host)

    names = Names(example_com=[["2606:2800:220:1::1", "93.184.216.34"]])
    async with Target(OK) as target:
        client = Client("", resolve=names, network=HalfDead(target.port))
        assert await client.post("http://example.com/", nothing) == 200


async def test_a_real_private_target_is_never_connected() -> None:
    async with Target(OK) as target:
        with pytest.raises(WebhookUrlError):
            await Client("").post(target.url, nothing)
    assert target.connections == 0


async def test_a_redirect_is_not_followed() -> None:
    async with Target(OK) as inner:
        reply = f"HTTP/1.1 302 Found\r\nlocation: {inner.url}\r\ncontent-length: 0\r\n\r\n"
        async with Target(reply.encode()) as target:
            allow = f"127.0.0.1:{target.port},127.0.0.1:{inner.port}"
            assert await Client(allow).post(target.url, nothing) == 302
    assert inner.connections == 0


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with Target(OK) as target:
        assert await Client("127.0.0.1").post(target.url, nothing) == 200


@pytest.mark.parametrize("answer", [silence, drip])
async def test_a_target_that_does_not_finish_is_left_in_time(answer: Any) -> None:
    async with Target(answer) as target:
        with pytest.raises(WebhookDeliveryError, match="did not answer within"):
            await Client("127.0.0.1", timeout=0.2).post(target.url, nothing)


async def test_a_long_answer_is_cut_off() -> None:
    sent = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()

    async with Target(flood) as target:
        assert await Client("127.0.0.1").post(target.url, nothing) == 200
    assert sent < 64 * 1024 * 1024  # what the sockets' buffers took


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n"])
async def test_an_answer_that_is_no_http_is_a_failure(answer: bytes) -> None:
    async with Target(answer) as target:
        with pytest.raises(WebhookDeliveryError, match=rf"http://127\.0\.0\.1:{target.port}"):
            await Client("127.0.0.1").post(target.url, nothing)


async def test_a_dead_port_and_an_unknown_name_are_failures() -> None:
    async with Target(OK) as target:
        url = target.url
    with pytest.raises(WebhookDeliveryError, match="cannot be reached") as failed:
        await Client("127.0.0.1").post(url, nothing)
    assert "a=1" not in str(failed.value)  # a URL's query may hold a secret
    with pytest.raises(WebhookDeliveryError, match="cannot be reached"):
        await Client("", resolve=Names()).post("http://example.com/", nothing)


def certified(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return what serves TLS as `name`, and what trusts just that."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "tls.pem").write_bytes(pem + secret)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "tls.pem")
    return serving, ssl.create_default_context(cadata=pem.decode())


async def test_tls_is_checked_for_the_name_not_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, trusting = certified(tmp_path, "example.com")
    names = Names(example_com=[["93.184.216.34"]], example_org=[["93.184.216.34"]])
    async with Target(OK, serving) as target:
        network = Detour(target.port)
        client = Client("", resolve=names, network=network)
        with pytest.raises(WebhookDeliveryError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.post("https://example.com/", nothing)
        monkeypatch.setattr(httpcore, "default_ssl_context", lambda: trusting)
        client = Client("", resolve=names, network=network)
        assert await client.post("https://example.com./", nothing) == 200
        with pytest.raises(WebhookDeliveryError, match=r"example\.org"):
            await client.post("https://example.org/", nothing)
    ((_, headers, _),) = target.requests
    assert headers["host"] == "example.com"


async def test_no_message_is_made_for_a_target_that_is_not_connected() -> None:
    """Many dead targets hold no bodies."""
    made = []

    async def make() -> tuple[dict[str, str], bytes]:
        made.append(1)
        return {}, b""

    async with Target(OK) as target:
        url = target.url
        await Client("127.0.0.1").post(url, make)
    with pytest.raises(WebhookDeliveryError):
        await Client("127.0.0.1").post(url, make)
    assert len(made) == 1


# Signing


def verify(headers: dict[str, str], body: bytes, jwks: dict[str, Any]) -> bool:
    """The receiver's part, written after https://docs.fal.ai/model-endpoints/webhooks."""
    given = {name.lower(): value for name, value in headers.items()}
    timestamp = given["x-fal-webhook-timestamp"]
    if abs(int(timestamp) - int(time.time())) > 300:
        return False
    parts = [given["x-fal-webhook-request-id"], given["x-fal-webhook-user-id"], timestamp]
    signed = "\n".join([*parts, hashlib.sha256(body).hexdigest()]).encode()
    for key in jwks["keys"]:
        raw = base64.urlsafe_b64decode(key["x"] + "=" * (-len(key["x"]) % 4))
        with contextlib.suppress(InvalidSignature):
            signature = bytes.fromhex(given["x-fal-webhook-signature"])
            Ed25519PublicKey.from_public_bytes(raw).verify(signature, signed)
            return True
    return False


def test_a_verifier_after_fals_documentation_accepts_and_refuses_a_changed_body(
    store: Store, tmp_path: Path
) -> None:
    signer = Signer(store, Vault(tmp_path))
    headers = signer.headers("request-1", "user-1", b'{"a": 1}', time.time())
    jwks = json.loads(json.dumps(signer.jwks()))
    assert verify(headers, b'{"a": 1}', jwks)
    assert not verify(headers, b'{"a": 2}', jwks)
    assert not verify({**headers, "X-Fal-Webhook-User-Id": "user-2"}, b'{"a": 1}', jwks)
    old = signer.headers("request-1", "user-1", b"", time.time() - 400)
    assert not verify(old, b"", jwks)


def test_jwks_has_fals_form(store: Store, tmp_path: Path) -> None:
    (key,) = Signer(store, Vault(tmp_path)).jwks()["keys"]
    assert (key["kty"], key["crv"], len(key["x"])) == ("OKP", "Ed25519", 43)
    assert "d" not in key


def test_the_key_is_made_once_and_not_readable_in_the_store(store: Store, tmp_path: Path) -> None:
    first = Signer(store, Vault(tmp_path))
    keys = first.jwks()
    assert Signer(store, Vault(tmp_path)).jwks() == keys
    stored = store.note("webhook_key", lambda: "")
    assert Vault(tmp_path).decrypt(stored) not in (tmp_path / "store.db").read_bytes().decode(
        "latin-1"
    )


def test_a_lost_key_file_gives_a_new_signing_key(store: Store, tmp_path: Path) -> None:
    old = Signer(store, Vault(tmp_path)).jwks()
    (tmp_path / "secrets.key").unlink()
    new = Signer(store, Vault(tmp_path)).jwks()
    assert new != old
    assert Signer(store, Vault(tmp_path)).jwks() == new


# The body


def request(request_id: str = "r", **more: Any) -> QueuedRequest:
    number = time.time_ns() // 1000
    return QueuedRequest(number, request_id, "me", "app", "POST", b"/", [], "me", **more)


REQUEST = request()


def body(status: int, payload: bytes, kind: str = "application/json", error: str = "") -> Any:
    failed = dataclasses.replace(REQUEST, error=error)
    return json.loads(message.body(failed, status, payload, len(payload), kind))


def test_a_result_is_the_payload() -> None:
    assert body(200, b'{"images": ["\\u00e4"]}') == {
        "request_id": "r",
        "gateway_request_id": "r",
        "status": "OK",
        "payload": {"images": ["ä"]},
        "error": None,
        "payload_error": None,
    }


@pytest.mark.parametrize("status", [204, 302, 304])
def test_a_redirect_is_an_answer_as_in_the_queues_status(status: int) -> None:
    assert (body(status, b"")["status"], body(status, b"")["error"]) == ("OK", None)


def test_an_error_keeps_its_details() -> None:
    told = body(422, b'{"detail": []}')
    assert (told["status"], told["payload"]) == ("ERROR", {"detail": []})
    assert told["error"] == "Invalid status code: 422"
    told = body(504, b"", "", "the start deadline passed")
    assert (told["status"], told["payload"]) == ("ERROR", None)
    assert (told["error"], told["payload_error"]) == ("the start deadline passed", None)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"\x89PNG", "image/png"),
        (b"7", "text/plain"),
        (b"{", "application/json"),
        (b"", "application/json"),
        (b"\xff", "application/json"),
        (b"NaN", "application/json"),
        (b"[1e999]", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"9" * 5000, "application/json"),
    ],
)
def test_an_answer_that_is_no_json_is_told_and_left_out(payload: bytes, kind: str) -> None:
    told = body(200, payload, kind)
    assert (told["status"], told["payload"], told["error"]) == ("OK", None, None)
    assert "JSON" in told["payload_error"]
    assert "/queue/me/app/requests/r" in told["payload_error"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/a+json", ""])
def test_json_is_known_by_its_content_type(kind: str) -> None:
    assert body(200, b"[1]", kind)["payload"] == [1]


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    records = Records(tmp_path)
    yield records
    records.close()


async def completed(records: Records, request: QueuedRequest, content: bytes) -> None:
    """Accept and complete a request; a large answer lies in a file."""
    await records.accept(request, b"{}")
    spool = Spool(records.answer_path(request.id))
    await spool.write(content)
    answer = Answer(200, [(b"content-type", b"application/json")], await spool.finish())
    await records.complete(request, answer, 1000.0)


@pytest.mark.parametrize(("size", "is_sent"), [(1_000_000, True), (1_000_001, False)])
async def test_a_payload_above_a_megabyte_is_left_out(
    records: Records, size: int, is_sent: bool
) -> None:
    await completed(records, request(), json.dumps("x" * (size - 2)).encode())
    make = message.of_request(records, "r")
    assert make is not None
    told = json.loads(await make())
    assert (told["status"], told["error"]) == ("OK", None)
    if is_sent:
        assert len(told["payload"]) == size - 2
    else:
        assert told["payload"] is None
        assert "1,000,001 bytes" in told["payload_error"]
        assert "/queue/me/app/requests/r" in told["payload_error"]


async def test_a_forgotten_request_has_no_message(records: Records) -> None:
    assert message.of_request(records, "r") is None


async def test_a_request_whose_webhook_is_outstanding_is_not_forgotten(records: Records) -> None:
    await completed(records, request("told"), b"1")
    await completed(records, request("untold", webhook="http://example.com/"), b"1")
    await records.forget(2000.0)
    assert records.find("told") is None
    assert records.find("untold") is not None
    await DeliveryTable(records.journal).done("untold")
    await records.forget(2000.0)
    assert records.find("untold") is None


# The schedule


def test_ten_retries_are_spread_over_two_hours() -> None:
    at, gaps = 1000.0, []
    for attempt in range(1, 11):
        following = next_attempt(attempt, at)
        assert following is not None
        gaps.append(following - at)
        at = following
    assert next_attempt(11, at) is None
    assert at == pytest.approx(1000 + 2 * 3600)
    assert gaps == sorted(gaps)
    assert gaps[0] < 10


# Delivery


class FullAtTimes(Journal):
    """The queue's journal, on a disk that tests can fill."""

    full = False

    async def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        if self.full:
            raise StoreError("the disk is full")
        return await super().write(change)


def opened(tmp_path: Path) -> FullAtTimes:
    return FullAtTimes(tmp_path / "queue.db", [table.SCHEMA])


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[FullAtTimes]:
    journal = opened(tmp_path)
    yield journal
    journal.close()


class Clock:
    """Time that only tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def delivering(
    journal: FullAtTimes, send: Callable[[Delivery], Awaitable[None]], clock: Callable[[], float]
) -> AsyncIterator[Deliverer]:
    """A deliverer at work."""
    deliverer = Deliverer(DeliveryTable(journal), send, clock)
    work = asyncio.create_task(deliverer.run())
    try:
        yield deliverer
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work


async def add(journal: FullAtTimes, *urls: str, start: int = 0, at: float = 1000.0) -> None:
    def insert(connection: sqlite3.Connection) -> None:
        for number, url in enumerate(urls, start):
            table.add(connection, f"r{number}", "me", url, at)

    await journal.write(insert)


def rows(journal: FullAtTimes) -> list[sqlite3.Row]:
    return journal.read("SELECT * FROM webhooks ORDER BY request_id")


@pytest.fixture
def sender(store: Store, tmp_path: Path) -> Sender:
    def find(request_id: str) -> Callable[[], Awaitable[bytes]] | None:
        async def make() -> bytes:
            return json.dumps({"request_id": request_id}).encode()

        return None if request_id == "r9" else make

    return Sender("127.0.0.1", Signer(store, Vault(tmp_path)), find)


async def test_a_delivery_arrives_signed_and_is_done(
    journal: FullAtTimes, sender: Sender, store: Store, tmp_path: Path
) -> None:
    async with Target(OK) as target, delivering(journal, sender, Clock()) as deliverer:
        await add(journal, target.url)
        deliverer.notify()
        await eventually(lambda: not rows(journal))
    ((line, headers, body),) = target.requests
    assert line == "POST /hook?a=1 HTTP/1.1"
    assert headers["content-type"] == "application/json"
    assert verify(headers, body, Signer(store, Vault(tmp_path)).jwks())
    assert headers["x-fal-webhook-user-id"] == "me"


async def test_nothing_is_sent_when_the_result_is_gone(
    journal: FullAtTimes, sender: Sender
) -> None:
    async with Target(OK) as target, delivering(journal, sender, Clock()) as deliverer:
        await add(journal, target.url, start=9)
        deliverer.notify()
        await eventually(lambda: not rows(journal))
    assert target.connections == 0


async def test_a_request_is_added_once(journal: FullAtTimes) -> None:
    await add(journal, "http://a/")
    await add(journal, "http://b/")
    assert [row["url"] for row in rows(journal)] == ["http://a/"]


async def test_a_refusal_is_tried_ten_times_again_and_then_given_up(
    journal: FullAtTimes, sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    async with Target(REFUSED) as target, delivering(journal, sender, clock) as deliverer:
        await add(journal, target.url)
        for attempt in range(1, 11):
            deliverer.notify()
            await eventually(lambda n=attempt: rows(journal)[0]["attempt"] == n)  # type: ignore[misc]
            (row,) = rows(journal)
            assert "answered 503" in row["error"]
            assert row["next_at"] == next_attempt(attempt, clock.now)
            clock.now = row["next_at"]
        deliverer.notify()
        await eventually(lambda: not rows(journal))
    assert len(target.requests) == 11
    assert f"request r0 to http://127.0.0.1:{target.port} is given up" in caplog.text
    assert "a=1" not in caplog.text


async def test_it_is_not_tried_again_before_its_time(journal: FullAtTimes, sender: Sender) -> None:
    clock = Clock()
    async with Target(REFUSED) as target, delivering(journal, sender, clock) as deliverer:
        await add(journal, target.url)
        deliverer.notify()
        await eventually(lambda: rows(journal)[0]["attempt"] == 1)
        clock.now += 5
        deliverer.notify()
        await asyncio.sleep(0.05)
        assert len(target.requests) == 1


async def test_after_a_long_sleep_retries_keep_their_distance(
    journal: FullAtTimes, sender: Sender
) -> None:
    """A laptop that wakes without its network must not spend all retries at once."""
    clock = Clock()
    async with Target(REFUSED) as target, delivering(journal, sender, clock) as deliverer:
        await add(journal, target.url)
        deliverer.notify()
        await eventually(lambda: rows(journal)[0]["attempt"] == 1)
        clock.now += 5 * 3600
        deliverer.notify()
        await eventually(lambda: rows(journal)[0]["attempt"] == 2)
        assert rows(journal)[0]["next_at"] > clock.now
    assert len(target.requests) == 2


async def test_what_is_due_is_sent_without_being_told(journal: FullAtTimes, sender: Sender) -> None:
    async with Target(OK) as target:
        await journal.write(
            lambda connection: table.add(connection, "r", "me", target.url, time.time() + 0.1)
        )
        async with delivering(journal, sender, time.time):
            await eventually(lambda: not rows(journal))


async def test_deliveries_survive_a_restart_of_the_gateway(
    journal: FullAtTimes, sender: Sender, tmp_path: Path
) -> None:
    async with Target(silence) as target:
        await add(journal, target.url)
        async with delivering(journal, sender, Clock()):
            await eventually(lambda: target.requests)  # ended while it was on its way
        target.answer = OK
        again = opened(tmp_path)
        async with delivering(again, sender, Clock()):
            await eventually(lambda: not rows(again))
        again.close()
    assert len(target.requests) == 2


class Sent:
    """Notes deliveries; those whose URL holds "dead" never end."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.flying: list[str] = []

    async def __call__(self, delivery: Delivery) -> None:
        self.flying.append(delivery.url)
        try:
            if "dead" in delivery.url:
                await asyncio.Event().wait()
        finally:
            self.flying.remove(delivery.url)
        self.ended.append(delivery.url)


async def test_a_dead_target_holds_nothing(journal: FullAtTimes) -> None:
    sent = Sent()
    dead = ["http://dead/"] * 300
    await add(journal, *dead, *(f"http://live{n}/" for n in range(40)))
    async with delivering(journal, sent, Clock()):
        await eventually(lambda: len(sent.ended) == 40)
        assert sent.flying == ["http://dead/"] * flights.PER_TARGET


async def test_a_dead_port_holds_no_other_port_of_its_host(journal: FullAtTimes) -> None:
    sent = Sent()
    await add(journal, *["http://host:1/dead"] * 10, "http://host:2/", "https://host/")
    async with delivering(journal, sent, Clock()):
        await eventually(lambda: sorted(sent.ended) == ["http://host:2/", "https://host/"])


async def test_a_path_that_hangs_holds_no_other_path_of_its_server(journal: FullAtTimes) -> None:
    sent = Sent()
    await add(journal, *(f"http://host/dead?n={n}" for n in range(9)), "http://host/after")
    async with delivering(journal, sent, Clock()):
        await eventually(lambda: sent.ended == ["http://host/after"])
        assert len(sent.flying) == flights.PER_TARGET


def test_a_server_has_few_targets_however_many_paths_it_has() -> None:
    assert len({targets.parse(f"http://host/hooks/{n}").lane for n in range(2000)}) == targets.LANES


async def test_many_dead_targets_do_not_hold_one_that_nobody_called_before(
    journal: FullAtTimes,
) -> None:
    sent = Sent()
    await add(journal, *(f"http://dead{n}/" for n in range(400)), at=900.0)
    async with delivering(journal, sent, Clock()) as deliverer:
        await eventually(lambda: len(sent.flying) >= 60)
        await add(journal, "http://live/", start=1000)
        deliverer.notify()
        await eventually(lambda: sent.ended)


def test_what_is_slow_leaves_places_until_its_end() -> None:
    """For 15 s a second's starts find room, however many never answer."""
    flying = flights.Flights()
    many = iter([Delivery(f"{n}", "", "", "", 0, 0, "") for n in range(500)])
    for _ in range(15):
        started = []
        while flying.left_to_unproven > 0:
            started.append(next(many))
            flying.start(started[-1])
        assert started
        for delivery in started:
            flying.slow(delivery)


async def test_a_target_gets_four_at_once(journal: FullAtTimes) -> None:
    sent = Sent()
    await add(journal, *["http://host/dead"] * 10)
    async with delivering(journal, sent, Clock()):
        await eventually(lambda: len(sent.flying) == 4)
        await asyncio.sleep(0.02)
        assert len(sent.flying) == 4


async def test_targets_that_answer_have_room_however_many_are_dead(
    journal: FullAtTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "FRESH", 0.0)
    sent = Sent()
    await add(journal, *(f"http://host{n}/" for n in range(40)))
    async with delivering(journal, sent, Clock()) as deliverer:
        await eventually(lambda: len(sent.ended) == 40)
        await add(journal, *(f"http://dead{n}/" for n in range(500)), start=100)
        deliverer.notify()
        await eventually(lambda: len(sent.flying) == 192)
        await add(journal, *(f"http://host{n}/" for n in range(40)), start=1000)
        deliverer.notify()
        await eventually(lambda: len(sent.ended) == 80)
        await add(journal, *(f"http://host{n % 40}/?dead" for n in range(160)), start=2000)
        deliverer.notify()
        await eventually(lambda: len(sent.flying) == 256)
        await asyncio.sleep(0.02)
        assert len(sent.flying) == 256


async def test_one_that_is_told_the_first_time_comes_before_retries(journal: FullAtTimes) -> None:
    deliveries = DeliveryTable(journal)
    await add(journal, "http://a/", "http://b/")
    await deliveries.reschedule("r0", 1, 900.0, "it failed")
    assert [d.request_id for d in deliveries.due(1000.0, 9)] == ["r1", "r0"]


async def test_of_several_targets_the_one_told_last_comes_first(journal: FullAtTimes) -> None:
    """It has not shown yet that it is dead; those that wait for long have neighbours that are."""
    await add(journal, "http://a/", at=900.0)
    await add(journal, "http://a/", "http://b/", start=1)
    assert [d.request_id for d in DeliveryTable(journal).due(1000.0, 9)] == ["r2", "r0"]


@pytest.mark.parametrize(
    ("files", "room"), [(256, 64), (20_000, 256), (resource.RLIM_INFINITY, 256)]
)
def test_few_are_on_their_way_where_few_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch, files: int, room: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert flights.room() == room


async def test_a_mistake_of_the_senders_is_one_failed_attempt(
    journal: FullAtTimes, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks(delivery: Delivery) -> None:
        raise ZeroDivisionError("a bug")

    await add(journal, "http://a/")
    async with delivering(journal, breaks, Clock()):
        await eventually(lambda: rows(journal)[0]["attempt"] == 1)
    assert "ZeroDivisionError" in caplog.text


async def test_a_full_disk_is_waited_for(
    journal: FullAtTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "PAUSE", 0.05)
    sent = Sent()
    await add(journal, "http://live/")
    journal.full = True
    async with delivering(journal, sent, Clock()):
        await eventually(lambda: sent.ended)
        journal.full = False
        await eventually(lambda: not rows(journal))
    assert len(sent.ended) < 10


def test_limits_are_those_of_fal() -> None:
    assert (client_module.TIMEOUT, client_module.CONNECT_TIMEOUT) == (15, 5)
    assert (delivery_module.RETRIES, delivery_module.WINDOW) == (10, 7200)
