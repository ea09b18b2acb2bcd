"""Where a webhook may go."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webhook_target import Names

from fal_notebook.exceptions import WebhookUrlError
from fal_notebook.gateway.webhooks import targets


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


def test_a_server_has_few_targets_however_many_paths_it_has() -> None:
    lanes = {targets.parse(f"http://host/hooks/{n}").lane for n in range(100_000)}
    assert len(lanes) == targets.LANES
