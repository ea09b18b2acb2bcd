"""Which addresses anyone on the internet could reach: for webhooks and downloads."""

from __future__ import annotations

import ipaddress

# Beyond what `is_global` knows in every Python: relays of other networks, and a cloud's host.
_RESERVED = tuple(
    map(
        ipaddress.ip_network,
        (
            *("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32"),
            *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
        ),
    )
)
# All else of IPv6 is local, multicast, or holds an IPv4 address (mapped, NAT64).
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


def is_public(address: str) -> bool:
    """Whether anyone on the internet could reach this address, and nothing hides behind it."""
    ip = ipaddress.ip_address(address)
    if any(ip in network for network in _RESERVED):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        return ip in _GLOBAL_UNICAST
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
