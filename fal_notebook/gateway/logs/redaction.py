"""Takes the values of stored secrets out of text that is given out: logs, errors of apps."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from urllib.parse import quote, quote_plus

from fal_notebook.exceptions import GatewayError
from fal_notebook.gateway.store import Secret, Store
from fal_notebook.gateway.vault import Vault

Redact = Callable[[str], str]

# Shorter values stand in text by chance; so do short lines of longer ones.
SHORTEST = 4
SHORTEST_LINE = 8


class Redaction:
    """Knows every value that was stored, or given to a runner, while the gateway lives.

    One that is replaced or deleted meanwhile still stands in lines of before.
    """

    def __init__(self, store: Store, vault: Vault) -> None:
        self._store = store
        self._vault = vault
        self._read: set[tuple[str, str]] = set()
        self._names: dict[str, str] = {}
        self._pattern: re.Pattern[str] | None = None

    def current(self) -> Redact:
        """Return what redacts, for any thread; call it on the event loop, before each reading."""
        for secret in self._store.select(Secret):
            if (secret.name, secret.value) not in self._read:
                self._read.add((secret.name, secret.value))
                with contextlib.suppress(GatewayError):  # of another key: nobody was given it
                    self._learn(secret.name, self._vault.decrypt(secret.value))
        pattern, names = self._pattern, self._names
        if pattern is None:
            return str
        return lambda text: pattern.sub(lambda found: f"[secret {names[found[0]]}]", text)

    def _learn(self, name: str, value: str) -> None:
        new = dict.fromkeys(forms(value), name)
        self._names = {**self._names, **new}
        longest_first = sorted(self._names, key=len, reverse=True)
        if longest_first:
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))


def forms(value: str) -> Iterator[str]:
    """Yield a value as text may show it: whole, by lines, escaped by JSON, Python or URLs."""
    lines = [line for line in value.splitlines() if len(line.strip()) >= SHORTEST_LINE]
    for text in {value, value.strip(), *lines}:
        if len(text) < SHORTEST:
            continue
        for dumped in (json.dumps(text), json.dumps(text, ensure_ascii=False), repr(text)):
            yield dumped[1:-1]
            yield json.dumps(dumped[1:-1])[1:-1]  # JSON within JSON
        yield from (text, quote(text), quote(text, safe=""), quote_plus(text))
