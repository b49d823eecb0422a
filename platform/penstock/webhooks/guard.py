"""Where webhooks may go: to global unicast addresses. The name is resolved once, and what was checked is connected to.

Private, loopback, link-local, CGNAT, unique local, multicast, unspecified, documentation and reserved addresses are
refused, and so are the IPv6 forms that carry an IPv4 address (mapped, compatible, NAT64, 6to4, Teredo), behind which
any of them can hide.
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import httpx

from penstock.errors import AddressRefused

Resolver = Callable[[str, int], Sequence[str]]
"""Host and port to addresses, best first. Raises `OSError` when the name is not known."""

_GLOBAL_IPV6: Final = ipaddress.ip_network("2000::/3")
_REFUSED: Final = {
    "a 6to4 relay": ipaddress.ip_network("192.88.99.0/24"),
    "an IPv4 address in IPv6 clothes (mapped)": ipaddress.ip_network("::ffff:0:0/96"),
    "an IPv4 address in IPv6 clothes (NAT64)": ipaddress.ip_network("64:ff9b::/96"),
    "an IPv4 address in IPv6 clothes (local NAT64)": ipaddress.ip_network("64:ff9b:1::/48"),
    "an IPv4 address in IPv6 clothes (6to4)": ipaddress.ip_network("2002::/16"),
    "an IPv4 address in IPv6 clothes (Teredo)": ipaddress.ip_network("2001::/32"),
    "a carrier's shared address (CGNAT)": ipaddress.ip_network("100.64.0.0/10"),
    "a unique local address": ipaddress.ip_network("fc00::/7"),
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where an attempt connects to: the checked `addresses` and no other. TLS and HTTP still say `host`."""

    url: httpx.URL
    host: str
    port: int
    addresses: tuple[str, ...]


def resolve(host: str, port: int) -> Sequence[str]:
    """The system's resolver, which also reads numbers in every spelling (`0x7f.1`)."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def check(url: str, *, allow_loopback: bool, resolver: Resolver = resolve) -> Target:
    """Resolve a webhook's host once and keep the addresses that are allowed.

    Raises `AddressRefused` when there is none or the URL is not plain http(s), `OSError` when the name is unknown.
    """
    parsed = _parse(url)
    host = parsed.raw_host.decode("ascii")
    port = _port(parsed)
    addresses = resolver(host, port)
    refusals = {address: refusal(address, allow_loopback=allow_loopback) for address in addresses}
    allowed = tuple(address for address, reason in refusals.items() if reason is None)
    if not allowed:
        reasons = "; ".join(f"{address} is {reason}" for address, reason in refusals.items())
        raise AddressRefused(f"webhooks go to public addresses alone: {host} is {reasons or 'no address'}", field="url")
    return Target(parsed, host, port, allowed)


def check_kept(url: str, *, allow_loopback: bool, resolver: Resolver = resolve) -> None:
    """Check an address that is to be kept, as it will be checked again at each delivery.

    Raises `AddressRefused`, also when the name is unknown now: whoever gives an address is there to mend it.
    """
    try:
        check(url, allow_loopback=allow_loopback, resolver=resolver)
    except (OSError, UnicodeError):
        raise AddressRefused(f"no address is known for the name in {url}", field="url") from None


def check_numeric(url: str, *, allow_loopback: bool, field: str) -> None:
    """Refuse an address that names a forbidden place by its number, or as localhost, without asking a name server."""
    parsed = _parse(url)
    host = parsed.raw_host.decode("ascii").rstrip(".").lower()
    found = _numeric(host)
    reason = refusal(found, allow_loopback=allow_loopback) if found is not None else None
    if reason is not None:
        raise AddressRefused(f"webhooks go to public addresses alone: {host} is {reason}", field=field)


def _numeric(host: str) -> str | None:
    """The address that a host is by itself, in any spelling; None for a name that must be looked up."""
    if host == "localhost" or host.endswith(".localhost"):
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None


def refusal(address: str, *, allow_loopback: bool) -> str | None:
    """What is wrong with an address, or None when webhooks may go there."""
    if "%" in address:
        return "bound to one network interface"
    ip = ipaddress.ip_address(address)
    if ip.is_loopback:
        return None if allow_loopback else "a loopback address"
    for reason, network in _REFUSED.items():
        if ip.version == network.version and ip in network:
            return reason
    return _unusual_kind(ip)


def _unusual_kind(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    kinds = {
        "the unspecified address": ip.is_unspecified,
        "a multicast address": ip.is_multicast,
        "a link-local address": ip.is_link_local,
        "a private address": ip.is_private,
        "a reserved address": ip.is_reserved or not ip.is_global,
        "not a global unicast address": ip.version == 6 and ip not in _GLOBAL_IPV6,
    }
    return next((kind for kind, applies in kinds.items() if applies), None)


def _parse(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise AddressRefused(f"{url!r} is not an address: {error}", field="url") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or not 0 < _port(parsed) < 65536:
        raise AddressRefused("a webhook's address is https:// or http://, a host and perhaps a port", field="url")
    if parsed.userinfo:
        raise AddressRefused(
            "a webhook's address carries no user or password; verify its signature instead", field="url"
        )
    return parsed


def _port(url: httpx.URL) -> int:
    if url.port is not None:
        return url.port
    return 443 if url.scheme == "https" else 80
