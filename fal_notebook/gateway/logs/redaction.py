"""Takes the values of stored secrets out of text that is given out: logs, errors of apps."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from fal_notebook.exceptions import GatewayError
from fal_notebook.gateway.store import RetiredSecret, Secret, Store
from fal_notebook.gateway.vault import Vault
from fal_notebook.runner.secret_forms import Redact, forms, redactor

__all__ = ["Redact", "Redaction"]


class Redaction:
    """Knows every value that is stored, and former ones for as long as a log may hold them."""

    def __init__(self, store: Store, vault: Vault) -> None:
        self._store = store
        self._vault = vault
        self._read: set[tuple[str, str]] = set()
        self._names: dict[str, str] = {}
        self._redact = redactor({})

    def current(self) -> Redact:
        """Return what redacts, for any thread; call it on the event loop, before each reading."""
        former, present = self._store.select(RetiredSecret), self._store.select(Secret)
        known: list[RetiredSecret | Secret] = [*former, *present]
        for secret in known:
            if (secret.name, secret.value) not in self._read:
                self._read.add((secret.name, secret.value))
                with contextlib.suppress(GatewayError):  # of another key: nobody was given it
                    self._learn(secret.name, self._vault.decrypt(secret.value))
        return self._redact

    def stored_forms(self) -> dict[bytes, str]:
        """Return the names of secrets by what files hold of them; call it on the event loop."""
        self.current()
        return {form.encode(errors="replace"): name for form, name in self._names.items()}

    def learn(self, values: Mapping[str, str]) -> None:
        """Know more values, by what is shown for each, until the process ends."""
        for name, value in values.items():
            self._learn(name, value)

    def _learn(self, name: str, value: str) -> None:
        self._names = {**self._names, **dict.fromkeys(forms(value), name)}
        self._redact = redactor(self._names)
