"""The values of secrets as text may show them, and what takes them out of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import quote, quote_plus

Redact = Callable[[str], str]

# Shorter values stand in text by chance; so do short lines of longer ones.
SHORTEST = 4
SHORTEST_LINE = 8

# A runner's own key is known by its look: each runner has another.
RUNNER_KEY_PREFIX = "frk_"
RUNNER_KEY = RUNNER_KEY_PREFIX + "[0-9a-f]{64}"
RUNNER_KEY_NAME = "FAL_KEY"


def forms(value: str) -> Iterator[str]:
    """Yield a value as text may show it: whole, by lines, escaped by JSON, Python or URLs."""
    lines = [line for line in value.splitlines() if len(line.strip()) >= SHORTEST_LINE]
    for text in {value, value.strip(), *lines}:
        if len(text) < SHORTEST:
            continue
        shown = (json.dumps(text), json.dumps(text, ensure_ascii=False), repr(text), ascii(text))
        for dumped in (*shown, repr(text.encode(errors="surrogateescape"))[1:]):
            yield dumped[1:-1]
            yield json.dumps(dumped[1:-1])[1:-1]  # JSON within JSON
        yield from (text, quote(text), quote(text, safe=""), quote_plus(text))


def redactor(names: Mapping[str, str]) -> Redact:
    """Return what replaces forms of secrets, the keys, by the secret's name; runners' keys too."""
    longest_first = sorted(names, key=len, reverse=True)
    pattern = re.compile("|".join([*map(re.escape, longest_first), RUNNER_KEY]))

    def named(found: re.Match[str]) -> str:
        return f"[secret {names.get(found[0], RUNNER_KEY_NAME)}]"

    return lambda text: pattern.sub(named, text)


def hiding(values: Mapping[str, str]) -> Redact:
    """Return what takes the values of secrets, by name, out of text."""
    return redactor({form: name for name, value in values.items() for form in forms(value)})
