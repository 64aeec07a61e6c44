"""Tell hosts of the local network from others, by their name or address alone."""

from __future__ import annotations

import ipaddress

_LOCAL = (".local", ".lan", ".home.arpa", ".internal")
"""Ends of names that only a local network resolves: RFC 6762, RFC 8375, and what routers and ICANN set aside."""


def is_local(host: str) -> bool:
    """Return whether a host name or address is this machine, or in the local network as far as it tells.

    Private and link-local addresses are, names without a dot, and names that end as in `camera.local`. Nothing is
    looked up.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        name = host.lower().rstrip(".")
        return "." not in name or name.endswith(_LOCAL)
    return address.is_private or address.is_link_local or address.is_loopback
