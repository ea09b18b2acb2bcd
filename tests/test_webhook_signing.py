"""Who signed a webhook, and that receivers can tell."""

from __future__ import annotations

import json
import time
from pathlib import Path

from webhook_target import verify

from fal_notebook.gateway.store import Store
from fal_notebook.gateway.vault import Vault
from fal_notebook.gateway.webhooks.signing import Signer


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
