"""Signs webhooks as fal does: ED25519 over ids, time and digest; the public key as JWKS."""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
from typing import TYPE_CHECKING, Any

from fal_notebook.exceptions import GatewayError
from fal_notebook.gateway.store import Store
from fal_notebook.gateway.vault import Vault

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

log = logging.getLogger(__name__)

NOTE = "webhook_key"


class Signer:
    """Signs with the key of a state folder, which is made at first use."""

    def __init__(self, store: Store, vault: Vault) -> None:
        self._store = store
        self._vault = vault

    def headers(self, request_id: str, user_id: str, body: bytes, at: float) -> dict[str, str]:
        """Return the headers that prove a body; `at` (unix seconds) is when it is sent.

        Receivers refuse a time that is more than five minutes off, so each attempt is signed anew.
        """
        timestamp = str(int(at))
        signed = "\n".join([request_id, user_id, timestamp, hashlib.sha256(body).hexdigest()])
        return {
            "X-Fal-Webhook-Request-Id": request_id,
            "X-Fal-Webhook-User-Id": user_id,
            "X-Fal-Webhook-Timestamp": timestamp,
            "X-Fal-Webhook-Signature": self._key.sign(signed.encode()).hex(),
        }

    def jwks(self) -> dict[str, Any]:
        """Return the public key as a JSON Web Key Set."""
        public = base64.urlsafe_b64encode(self._key.public_key().public_bytes_raw())
        x = public.decode().rstrip("=")
        key = {"kty": "OKP", "crv": "Ed25519", "x": x, "use": "sig", "alg": "EdDSA", "kid": x[:16]}
        return {"keys": [key]}

    @functools.cached_property
    def _key(self) -> Ed25519PrivateKey:
        # Imported when the first webhook comes: it costs an idle gateway 5 MB.
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self._secret()))

    def _secret(self) -> str:
        stored = self._store.note(NOTE, self._new_secret)
        try:
            return self._vault.decrypt(stored)
        except GatewayError:  # its key file is lost: receivers learn the new key from the JWKS
            log.warning("the key that signed webhooks cannot be read; a new one is made")
            return self._vault.decrypt(self._store.set_note(NOTE, self._new_secret()))

    def _new_secret(self) -> str:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return self._vault.encrypt(Ed25519PrivateKey.generate().private_bytes_raw().hex())
