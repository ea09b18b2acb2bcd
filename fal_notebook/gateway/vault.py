"""Secrets at rest: encrypted in the store, under a key in a 0600 file of the state folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fal_notebook import private_file
from fal_notebook.exceptions import GatewayError
from fal_notebook.settings import SECRETS_KEY

if TYPE_CHECKING:
    from cryptography.fernet import Fernet


class Vault:
    """Encrypts and decrypts with the key of a state folder, which is made at first use."""

    def __init__(self, state: Path) -> None:
        self._path = state / SECRETS_KEY
        self._fernet: Fernet | None = None

    def encrypt(self, value: str) -> str:
        """Return the text that is stored."""
        return self._cipher().encrypt(value.encode()).decode()

    def check(self) -> None:
        """Refuse a key file that holds no key.

        Raises
        ------
        GatewayError
        """
        if self._path.exists():
            self._cipher()

    def decrypt(self, stored: str, what: str = "a secret", remedy: str = "set it again") -> str:
        """Return the value again.

        Parameters
        ----------
        what, remedy : str
            What it is, and what helps when it cannot be read.

        Raises
        ------
        GatewayError
            When the key file is not the one it was encrypted with.
        """
        from cryptography.fernet import InvalidToken

        try:
            return self._cipher().decrypt(stored.encode()).decode()
        except InvalidToken:
            raise GatewayError(f"{what} cannot be read with {self._path}; {remedy}") from None

    def reads(self, stored: str) -> bool:
        """Say whether a value can be read with the key that is there; none is made for that."""
        try:
            return self._path.exists() and bool(self.decrypt(stored))
        except GatewayError:
            return False

    def _cipher(self) -> Fernet:
        # Imported when the first secret comes: it costs an idle gateway 5 MB.
        from cryptography.fernet import Fernet

        if self._fernet is None:
            if not self._path.exists():
                private_file.write(self._path, Fernet.generate_key())
            try:
                self._fernet = Fernet(self._path.read_bytes())
            except (ValueError, OSError) as error:
                why = error.strerror if isinstance(error, OSError) else "it holds no key"
                raise GatewayError(
                    f"{self._path} is damaged: {why}; put a copy of it back, or remove it and set "
                    "each secret again"
                ) from None
        return self._fernet
