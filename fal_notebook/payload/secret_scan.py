"""Finds keys in the bytes of a payload: formats of well-known services, and exact known values.

Only labels and places leave this module; what is done about a finding is left to `payload`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

MIN_KNOWN_LENGTH = 8
MIN_ENVIRONMENT_LENGTH = 16

_BLOCK = 1 << 16
_OVERLAP = 256
# Maps text to "a" and all other bytes to zero; no key is shorter than the run that is looked for.
_PRINTABLE = bytes(97 if 32 <= b < 127 or b in b"\t\r\n" else 0 for b in range(256))
_SHORTEST_RUN = b"a" * 14

_WORD = re.compile(rb"[A-Za-z0-9_-]")
# Opcodes of pickle for a short string or bytes: one byte of length follows, which may be a letter.
_SHORT_STRING = (0x8C, ord("C"))
_PLACEHOLDER = re.compile(rb"(?i)[<{$*%\[].*|pass(word|wd)?|secret|user(name)?|x+|\.+|changeme")
# What documents write where a key stands.
_EXAMPLE = re.compile(rb"EXAMPLE|X{12}")


@dataclass(frozen=True)
class Format:
    """A key format: the text that all of its keys contain, and the pattern around it.

    Attributes
    ----------
    label : str
        What such a key is, with its article: "an OpenAI key".
    anchor : bytes
        Text that is in every key; it is searched first, which is fast in large arrays.
    pattern : re.Pattern
        Matches the key, which starts `back` bytes before its anchor.
    back : int
        0 where the key starts with its anchor.
    """

    label: str
    anchor: bytes
    pattern: re.Pattern[bytes]
    back: int = 0

    def matches(self, content: bytes, start: int, end: int) -> Iterator[bytes]:
        """Yield the keys whose anchor starts in ``content[start:end]``."""
        at = content.find(self.anchor, start, end)
        while at >= 0:
            match = self.pattern.match(content, at - self.back) if at >= self.back else None
            if match is not None and _plausible(content, match):
                yield match.group()
            at = content.find(self.anchor, at + 1, end)


@dataclass(frozen=True)
class Finding:
    """Something that looks like a key; `text` is the key itself and must not be shown."""

    label: str
    text: bytes = field(repr=False)


def _format(label: str, anchor: str, rest: str, back: int = 0) -> Format:
    expression = rest if back else re.escape(anchor) + rest
    return Format(label, anchor.encode(), re.compile(expression.encode()), back)


FORMATS: tuple[Format, ...] = (
    _format("an AWS access key id", "AKIA", r"[A-Z0-9]{16}(?![A-Za-z0-9])"),
    _format("an AWS access key id", "ASIA", r"[A-Z0-9]{16}(?![A-Za-z0-9])"),
    _format("a GitHub token", "gh", r"[pousr]_[A-Za-z0-9]{36}"),
    _format("a GitHub token", "github_pat_", r"[A-Za-z0-9_]{50,}"),
    _format("a GitLab token", "glpat-", r"[A-Za-z0-9_-]{20,}"),
    _format("an Anthropic key", "sk-ant-", r"[A-Za-z0-9_-]{32,}"),
    _format("an OpenRouter key", "sk-or-v1-", r"[0-9a-f]{64}"),
    _format("an OpenAI key", "sk-", r"(?:(?:proj|svcacct|admin)-[\w-]{32,}|[A-Za-z0-9]{32,})"),
    _format("a Hugging Face token", "hf_", r"[A-Za-z0-9]{34,40}(?![A-Za-z0-9])"),
    _format("a Slack token", "xox", r"[abeprs]-[0-9]+-[A-Za-z0-9-]{12,}"),
    _format("a Slack webhook", "hooks.slack.com/services/", r"T\w{6,}/B\w{6,}/\w{16,}"),
    _format("a Google API key", "AIza", r"[A-Za-z0-9_-]{35}(?![A-Za-z0-9])"),
    _format("a Stripe key", "k_live_", r"[sr]k_live_[A-Za-z0-9]{16,}", back=1),
    _format("an npm token", "npm_", r"[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    _format("a PyPI token", "pypi-AgE", r"[A-Za-z0-9_-]{32,}"),
    _format("a SendGrid key", "SG.", r"[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),
    _format("a DigitalOcean token", "_v1_", r"do[opr]_v1_[0-9a-f]{64}", back=3),
    _format("a Twilio key", "SK", r"[0-9a-f]{32}(?![A-Za-z0-9])"),
    _format("a Replicate token", "r8_", r"[A-Za-z0-9]{37}(?![A-Za-z0-9])"),
    _format("an Azure storage key", "AccountKey=", r"[A-Za-z0-9+/]{86}=="),
    _format("a JSON web token", "eyJ", r"[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{16,}"),
    _format("a Groq key", "gsk_", r"[A-Za-z0-9]{52}(?![A-Za-z0-9])"),
    _format("a Google access token", "ya29.", r"[A-Za-z0-9_-]{50,}"),
    _format("a Google OAuth secret", "GOCSPX-", r"[\w-]{28}(?![\w-])"),
    _format("a Databricks token", "dapi", r"[0-9a-f]{32}(?:-\d)?(?![\w-])"),
    _format("a Shopify token", "shp", r"(?:at|ca|pa|ss)_[0-9a-fA-F]{32}(?!\w)"),
    _format("a Vault token", "hvs.", r"(?:[A-Za-z0-9]{24}|[\w-]{90,})(?![\w-])"),
    _format("an xAI key", "xai-", r"\w{80}(?!\w)"),
    _format("an NVIDIA key", "nvapi-", r"[\w-]{64}(?![\w-])"),
    _format("a Perplexity key", "pplx-", r"[A-Za-z0-9]{48}(?!\w)"),
    _format("a Tavily key", "tvly-", r"(?:dev-|prod-)?[A-Za-z0-9]{32}(?!\w)"),
    _format("a Pinecone key", "pcsk_", r"[A-Za-z0-9]{5,6}_[A-Za-z0-9]{63}(?!\w)"),
    _format("a LangSmith key", "lsv2_", r"(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}(?!\w)"),
    _format("a Docker token", "dckr_pat_", r"[\w-]{27}(?![\w-])"),
    _format("an age key", "AGE-SECRET-KEY-1", r"[02-9AC-HJ-NP-Z]{58}(?!\w)"),
    _format("a Doppler token", "dp.pt.", r"[A-Za-z0-9]{40,44}(?!\w)"),
    _format("a Notion token", "ntn_", r"[0-9]{11}[A-Za-z0-9]{35}(?!\w)"),
    _format("a Notion token", "secret_", r"[A-Za-z0-9]{43}(?!\w)"),
    _format("a Linear key", "lin_api_", r"[A-Za-z0-9]{40}(?!\w)"),
    *(
        _format("a Telegram bot token", ":AA", rf"\d{{{n}}}:AA[\w-]{{33}}(?![\w-])", back=n)
        for n in (8, 9, 10)
    ),
    _format(
        "a private key",
        "-----BEGIN ",
        r"(?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:[\s\w:,.+/=-]|\\[rn]){64,}",
    ),
    _format(
        "a fal key",
        ":",
        r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}:[0-9a-f]{32}(?![0-9a-f])",
        back=36,
    ),
    _format("a key of a gateway", ":", r"[a-z2-7]{16}:[0-9a-f]{32}(?![0-9a-f])", back=16),
    _format(
        "a URL with a password",
        "://",
        r"[^\s:/@\x00-\x1f]{0,64}:(?P<password>[^\s:/@\x00-\x1f]{3,128})@[\w.\[-]",
    ),
)


def scan(content: bytes) -> list[Finding]:
    """Return what looks like a key in `content`, each once.

    Parameters
    ----------
    content : bytes
        A pickle or UTF-8 text; arrays in it cost little, for they hold no runs of letters.
    """
    found: dict[bytes, str] = {}
    for start in range(0, len(content), _BLOCK):
        end = start + _BLOCK + _OVERLAP
        if _SHORTEST_RUN in content[start:end].translate(_PRINTABLE):
            for key in FORMATS:
                for text in key.matches(content, start, end):
                    found.setdefault(text, key.label)
    return [Finding(label, text) for text, label in found.items()]


def scan_known(content: bytes, known: Mapping[str, str]) -> list[Finding]:
    """Return which of the known secrets, by name, are inside `content`.

    Values shorter than `MIN_KNOWN_LENGTH` are left out: they are found anywhere.
    """
    values = {name: value.encode() for name, value in known.items()}
    return [
        Finding(f"the value of {name}", value)
        for name, value in values.items()
        if len(value) >= MIN_KNOWN_LENGTH and value in content
    ]


def environment_secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment variables that hold secrets, by their names' endings."""
    variables = os.environ if environment is None else environment
    return {
        f"the environment variable {name}": value
        for name, value in variables.items()
        if name.upper().endswith(("KEY", "TOKEN", "SECRET", "PASSWORD"))
        and len(value) >= MIN_ENVIRONMENT_LENGTH
        and not os.path.exists(value)  # the path of a key file is no secret
    }


def _plausible(content: bytes, match: re.Match[bytes]) -> bool:
    """Whether the text can be a key: no tail of a longer word, no example such as ``sk-xxxx``."""
    password = match.groupdict().get("password")
    if password is not None:
        return not _PLACEHOLDER.fullmatch(password)
    if len(set(match.group())) < 10 or _EXAMPLE.search(match.group()):
        return False
    return _starts_token(content, match)


def _starts_token(content: bytes, match: re.Match[bytes]) -> bool:
    start = match.start()
    before = content[start - 1 : start] if start else b""
    if not _WORD.match(before):
        return True
    opcode = content[start - 2] if start > 1 else 0
    return opcode in _SHORT_STRING and before[0] >= match.end() - start
