"""What turns fal's own clients, unchanged, to the gateway: for shells, Python and JavaScript."""

from __future__ import annotations

import shlex
from urllib.request import getproxies

from fal_notebook import sync
from fal_notebook.client import Client

# Stands where a key belongs until there is one; a key that a program has already stays its own.
NO_KEY = "no key: add --key, or set one that fal-notebook keys create shows"


def text(client: Client, kind: str | None, key: str = "") -> str:
    """Return the lines for one kind of client (``sh``, ``python``, ``js``), or for each.

    The TLS port of the gateway is opened where it is needed.
    """
    url = sync.wait(client.url())
    parts = []
    if kind in (None, "sh"):
        tls = sync.wait(client.open_tls())
        parts.append(shell(tls["port"], tls["bundle"], key))
    if kind in (None, "python"):
        parts.append(python(url, key))
    if kind in (None, "js"):
        parts.append(javascript(url, key))
    return "\n\n".join(parts)


def shell(port: int, bundle: str, key: str) -> str:
    """Return exports for fal's Python client, which insists on https.

    No variable redirects its uploads: these need `python`.
    """
    values = {
        "FAL_RUN_HOST": f"127.0.0.1:{port}/run",
        "FAL_QUEUE_RUN_HOST": f"127.0.0.1:{port}/queue",
        "SSL_CERT_FILE": bundle,
        **({"FAL_KEY": key} if key else {}),
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
    lines += [] if key else [f"# FAL_KEY: {NO_KEY}"]
    if getproxies().keys() & {"https", "all"}:
        lines.append('export NO_PROXY="127.0.0.1${NO_PROXY:+,$NO_PROXY}"')
    return "\n".join(["# fal's Python client; for its uploads see --python", *lines])


def python(url: str, key: str) -> str:
    """Return assignments that fal's Python client reads whenever it is called."""
    values = {
        "RUN_URL_FORMAT": f"{url}/run/",
        "QUEUE_URL_FORMAT": f"{url}/queue/",
        "REALTIME_URL_FORMAT": f"ws{url.removeprefix('http')}/run/",
        "REST_URL": f"{url}/rest",
        "CDN_URL": f"{url}/cdn",
    }
    lines = [f'fal_client.client.{name} = "{value}"' for name, value in values.items()]
    return "\n".join(
        [
            "# fal's Python client, inside Python",
            "import os",
            "import fal_client.client",
            *lines,
            f'os.environ["FAL_KEY"] = "{key}"' if key else f"# FAL_KEY: {NO_KEY}",
        ]
    )


def javascript(url: str, key: str) -> str:
    """Return the configuration of fal's JavaScript client."""
    return "\n".join(
        [
            "// fal's JavaScript client",
            'import { fal } from "@fal-ai/client";',
            "fal.config({",
            f'  proxyUrl: {{ url: "{url}/proxy", when: "always" }},',
            f'  credentials: "{key}",' if key else f"  // credentials: {NO_KEY}",
            "});",
        ]
    )
