"""Refuses a payload that holds a key, by the name of the variable that holds it.

What a key looks like is known to `secret_scan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fal_notebook.exceptions import SecretInPayloadError
from fal_notebook.payload.items import Item
from fal_notebook.payload.pickling import own_bytes
from fal_notebook.payload.references import is_by_value, is_class, is_function
from fal_notebook.payload.secret_scan import Finding, scan, scan_known
from fal_notebook.payload.sources import source_of


def refuse_secrets(
    pickled: bytes,
    sources: dict[str, str],
    items: list[Item],
    known: Mapping[str, str],
    allowed: Sequence[str],
) -> None:
    """Raise if a key, or one of the `known` secrets, is in the pickle or the sources.

    Raises
    ------
    SecretInPayloadError
        Names a captured value that holds it and is not among the `allowed`; never the key itself.
    """
    text = "\n".join(sources.values()).encode()
    findings = [
        f for content in (pickled, text) for f in (*scan(content), *scan_known(content, known))
    ]
    for finding in findings:
        holders = [_written(item) for item in items if _holds(item, finding.text)]
        refused = [item for item in holders if item.name not in allowed]
        if refused or not holders:
            raise SecretInPayloadError(_secret(refused or items[:1], finding))


def _holds(item: Item, text: bytes) -> bool:
    if (is_function(item.value) or is_class(item.value)) and not is_by_value(item.value):
        return False
    if text in own_bytes(item.value):
        return True
    return is_by_value(item.value) and text in (source_of(item.value) or "").encode()


def _written(item: Item) -> Item:
    """Return the item, or the class for whose sake a decorator has made what refers to it."""
    made = item.owner if item.owner is not None and item.owner.is_generated else None
    return made.owner if made is not None and made.owner is not None else item


def _secret(holders: list[Item], finding: Finding) -> str:
    holder = next((item for item in holders if item.kind not in ("function", "class")), holders[0])
    user = "" if holder.owner is None else holder.owner.name
    looks = "holds" if finding.label.startswith("the value of ") else "holds what looks like"
    if holder.owner is None or holder.kind in ("function", "class"):
        subject = f"`{holder.name}` {looks.replace('holds', 'contains')} {finding.label}"
    elif isinstance(holder.value, (str, bytes)) and looks != "holds":
        subject = f"`{holder.name}`, which `{user}` uses, looks like {finding.label}"
    else:
        subject = f"`{holder.name}`, which `{user}` uses, {looks} {finding.label}"
    stored = finding.label.removeprefix("the value of ")
    if stored != finding.label and not stored.startswith("the environment variable "):
        declare = f"declare secrets={stored} and read os.environ[{stored!r}]"
    else:
        declare = "store it with '%fal secrets set' and declare secrets=NAME, or use pass_env"
    return f"{subject}; {declare}, or give allow_secret={holder.name} if it is meant to travel"
