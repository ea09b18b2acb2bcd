"""What stands for a key during an upload: a short-lived bearer, and URLs that are signed."""

from __future__ import annotations

import hashlib
import hmac
import re
from urllib.parse import parse_qs

# A bearer is good for so long (seconds); clients ask for the next one themselves.
TOKEN_VALID = 3600.0
# A signed upload URL is good for so long: the last part of a big file comes late.
URL_VALID = 24 * 3600.0

_TOKEN = re.compile(r"([a-z0-9-]+)\.(\d{1,12})\.([0-9a-f]{64})", re.ASCII)


class Tickets:
    """Makes and checks them; nothing is kept.

    Parameters
    ----------
    secret : str
        Of the state folder, so that tickets outlive the gateway.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def token(self, user: str, until: float) -> str:
        """Return a bearer that uploads for a user."""
        text = f"{user}.{int(until)}"
        return f"{text}.{self._sign('token', text)}"

    def user_of(self, token: str, now: float) -> str | None:
        """Return whose bearer it is, None when it is none of ours or has expired."""
        found = _TOKEN.fullmatch(token)
        if found is None or not self._is_signed("token", f"{found[1]}.{found[2]}", found[3]):
            return None
        return found[1] if now < int(found[2]) else None

    def query(self, upload: str, until: float) -> str:
        """Return the query that lets who has it send the content of an upload."""
        return f"expires={int(until)}&signature={self._sign('upload', f'{upload}.{int(until)}')}"

    def admits(self, upload: str, query: str, now: float) -> bool:
        """Say whether a query is the one of this upload and has not expired."""
        given = parse_qs(query)
        until, signature = given.get("expires", [""])[0], given.get("signature", [""])[0]
        if not re.fullmatch(r"\d{1,12}", until, re.ASCII):
            return False
        return self._is_signed("upload", f"{upload}.{until}", signature) and now < int(until)

    def _sign(self, kind: str, text: str) -> str:
        return hmac.new(self._secret, f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()

    def _is_signed(self, kind: str, text: str, signature: str) -> bool:
        return hmac.compare_digest(self._sign(kind, text).encode(), signature.encode())
