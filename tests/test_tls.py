"""The gateway over TLS: certificates made once and in time, one port over restarts, own URLs."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

import certifi
import httpx
import pytest
from cryptography import x509
from serving import control, deployed, with_key

from fal_notebook import discovery
from fal_notebook.discovery import GatewayInfo
from fal_notebook.gateway.certificates import Certificates

NOW = datetime.datetime.now(datetime.timezone.utc)


def later(**time: float) -> datetime.datetime:
    return NOW + datetime.timedelta(**time)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certificates:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    certificates = Certificates(tmp_path / "tls")
    certificates.ensure(NOW)
    return certificates


def test_every_file_is_for_its_owner_only(made: Certificates) -> None:
    folder = made.server.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert b"PRIVATE" not in made.ca.read_bytes() + made.bundle.read_bytes()


def test_the_certificate_is_of_this_machines_names_and_its_authority_can_do_no_more(made) -> None:
    server = x509.load_pem_x509_certificate(made.server.read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert set(names.get_values_for_type(x509.IPAddress)) == {
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
    }
    authority = x509.load_pem_x509_certificate(made.ca.read_bytes())
    allowed = authority.extensions.get_extension_for_class(x509.NameConstraints)
    assert allowed.critical


def test_the_bundle_trusts_what_was_trusted_before_too(made) -> None:
    assert Path(certifi.where()).read_bytes() in made.bundle.read_bytes()
    assert made.ca.read_bytes() in made.bundle.read_bytes()


def test_an_organisations_own_bundle_is_kept(tmp_path, monkeypatch) -> None:
    (tmp_path / "own.pem").write_text("# own\n" + Path(certifi.where()).read_text())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
    certificates = Certificates(tmp_path / "tls")
    certificates.ensure(NOW)
    assert certificates.bundle.read_text().startswith("# own\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.bundle))
    certificates.ensure(NOW)
    assert certificates.bundle.read_bytes().count(certificates.ca.read_bytes()) == 1


def test_what_lasts_stays_and_what_nears_its_end_is_made_anew(made) -> None:
    ca, server = made.ca.read_bytes(), made.server.read_bytes()
    made.ensure(later(days=300))
    assert (made.ca.read_bytes(), made.server.read_bytes()) == (ca, server)
    made.ensure(later(days=340))
    assert made.ca.read_bytes() == ca
    assert made.server.read_bytes() != server
    made.ensure(later(days=3640))
    assert made.ca.read_bytes() != ca


@pytest.mark.parametrize("name", ["server.pem", "authority.pem"])
@pytest.mark.parametrize("content", ["", "broken", None])
def test_a_broken_or_missing_file_is_made_anew(made, name: str, content: str | None) -> None:
    path = made.server.parent / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    made.ensure(NOW)
    context = ssl.create_default_context(cafile=made.ca)
    context.load_cert_chain(made.server)


@pytest.fixture
def tls(gateway: GatewayInfo) -> Iterator[httpx.Client]:
    """A client of the TLS port that trusts what the gateway says is to be trusted."""
    with control(gateway) as api:
        opened = api.post("/api/gateway/tls").json()
        key = api.post("/api/keys").json()
        context = ssl.create_default_context(cafile=opened["bundle"])
        with httpx.Client(
            base_url=f"https://localhost:{opened['port']}",
            verify=context,
            headers=with_key(key["key"]),
            trust_env=False,
        ) as client:
            yield client
        api.delete(f"/api/keys/{key['id']}")


def test_apps_answer_over_tls_and_urls_are_those_of_the_caller(tls) -> None:
    with deployed("def double(x: int) -> int:\n    return 2 * x", serve=True):
        assert tls.post("/run/tester/double", json={"x": 4}).json() == 8
        told = tls.post("/queue/tester/double", json={"x": 4}).json()
        assert told["status_url"].startswith(f"{tls.base_url}/queue/tester/double/requests/")
        by_number = str(tls.base_url).replace("localhost", "127.0.0.1")
        assert httpx.get(
            f"{by_number}/metrics", verify=tls._transport._pool._ssl_context, headers=tls.headers
        ).is_success


def test_the_tls_port_asks_for_keys_and_names_as_the_other_does(tls) -> None:
    assert tls.get("/api/apps").status_code == 403
    assert tls.get("/metrics", headers={"host": "a.test"}).status_code == 403
    assert tls.get("/metrics", headers={"origin": "https://a.test"}).status_code == 403
    assert tls.get("/metrics", headers={"origin": str(tls.base_url)}).status_code == 200
    plain = httpx.URL(tls.base_url).copy_with(scheme="http")
    with pytest.raises(httpx.HTTPError):
        httpx.get(plain)


def test_opening_twice_is_one_port_and_the_next_gateway_has_it_again(
    private_state, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(tmp_path))
    first = discovery.ensure(tmp_path)
    with control(first) as api:
        opened = api.post("/api/gateway/tls").json()
        assert api.post("/api/gateway/tls").json() == opened
        api.post("/api/gateway/stop")
    discovery.wait_until_gone(tmp_path)
    second = discovery.ensure(tmp_path)
    context = ssl.create_default_context(cafile=opened["ca"])
    url = f"https://127.0.0.1:{opened['port']}/api/gateway"
    headers = {"authorization": f"Bearer {second.token}"}
    assert httpx.get(url, verify=context, headers=headers, trust_env=False).is_success
    with control(second) as api:
        api.post("/api/gateway/stop")
    discovery.wait_until_gone(tmp_path)


def test_a_port_that_is_taken_is_named(private_state, tmp_path, monkeypatch, gateway) -> None:
    taken = gateway.url.rsplit(":", 1)[1]
    monkeypatch.setenv("FAL_NOTEBOOK_STATE", str(tmp_path))
    monkeypatch.setenv("FAL_NOTEBOOK_TLS_PORT", taken)
    own = discovery.ensure(tmp_path)
    with control(own) as api:
        refused = api.post("/api/gateway/tls")
        assert refused.status_code == 500
        assert f"tls_port={taken} cannot be used" in refused.json()["detail"]
        api.post("/api/gateway/stop")
    discovery.wait_until_gone(tmp_path)
