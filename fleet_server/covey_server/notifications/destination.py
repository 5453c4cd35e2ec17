"""Where a webhook may go. A server that posts wherever it is told could be made to post to what only it can reach: itself, the
cloud's metadata service, other machines of its network. So the address is looked up once, judged, and connected to as judged
(a name that changes its address in between changes nothing), and answers that lead elsewhere are not followed.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_URL = 2048
_DEFAULT_PORTS = {"http": 80, "https": 443}
# RFC 6052, 2002::/16 (RFC 3056) and Teredo: IPv6 addresses that lead to IPv4 ones.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Shared address space of providers (RFC 6598); `is_global` has it right, but only since late versions of Python.
_SHARED = ipaddress.ip_network("100.64.0.0/10")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]


class BadDestinationError(ValueError):
    """This address is not one that webhooks go to."""


@dataclass(frozen=True)
class Target:
    """A checked URL."""

    scheme: str
    host: str
    port: int
    path: str  # with the query

    @property
    def authority(self) -> str:
        """For the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str, *, private: bool) -> Target:
    """Read a URL. `private`: whether plain HTTP is allowed, as private addresses are. Raises `BadDestinationError`.

    >>> parse("https://hooks.example/covey?x=1", private=False)
    Target(scheme='https', host='hooks.example', port=443, path='/covey?x=1')
    """
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise BadDestinationError("it is not a URL in ASCII of at most 2048 characters")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadDestinationError(f"it is not a URL: {error}") from error
    if parts.scheme not in _DEFAULT_PORTS or not host:
        raise BadDestinationError("it has the form https://HOST/PATH")
    if parts.scheme == "http" and not private:
        raise BadDestinationError("plain HTTP is for private addresses, which the setting webhook_private allows")
    if parts.username is not None or parts.password is not None:
        raise BadDestinationError("it must hold no name and password")
    if parts.fragment:
        raise BadDestinationError("it must have no fragment")
    if port == 0:
        raise BadDestinationError("port 0 is none")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme], path)


def addresses(target: Target, *, private: bool, resolve: Resolve | None = None) -> list[str]:
    """Where to connect to. Raises `BadDestinationError` if any of them is private and must not be, and `OSError`."""
    found = (resolve or system_resolve)(target.host, target.port)
    if not found:
        raise BadDestinationError(f"{target.host} has no address")
    for address in found:
        if not private and not is_public(ipaddress.ip_address(address.partition("%")[0])):
            raise BadDestinationError(
                f"{target.host} is a private address ({address}), which the setting webhook_private would allow"
            )
    return list(found)


def is_public(address: Address) -> bool:
    """Whether this is an address of the public internet, looking through IPv6 addresses that lead to IPv4 ones.

    >>> [is_public(ipaddress.ip_address(a)) for a in ("8.8.8.8", "10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1")]
    [True, False, False, False]
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    elif address in _SHARED:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved and not address.is_unspecified


def system_resolve(host: str, port: int) -> list[str]:
    """By the machine's resolver; each address once. Raises `OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))
