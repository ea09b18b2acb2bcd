"""The guarded client of webhooks: it connects to what was checked and to nothing else."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from pathlib import Path
from typing import Any

import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from webhook_target import OK, Detour, Names, Target, drip, nothing, silence

from fal_notebook.exceptions import WebhookDeliveryError, WebhookUrlError
from fal_notebook.gateway.webhooks.client import Client


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
