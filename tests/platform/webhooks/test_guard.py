"""Which addresses webhooks may go to."""

import ipaddress
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.errors import AddressRefused
from penstock.webhooks.guard import check, refusal, resolve

REFUSED = {
    "0.0.0.0": "unspecified",
    "0.1.2.3": "private",
    "10.1.2.3": "private",
    "100.64.0.1": "CGNAT",
    "100.127.255.255": "CGNAT",
    "127.0.0.1": "loopback",
    "127.255.0.9": "loopback",
    "169.254.169.254": "link-local",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.0.0.1": "private",
    "192.0.2.1": "private",
    "192.88.99.1": "6to4 relay",
    "192.168.1.1": "private",
    "198.18.0.1": "private",
    "203.0.113.7": "private",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.1": "private",
    "255.255.255.255": "private",
    "::": "unspecified",
    "::1": "loopback",
    "::7f00:1": "reserved",
    "::ffff:127.0.0.1": "mapped",
    "::ffff:8.8.8.8": "mapped",
    "64:ff9b::7f00:1": "NAT64",
    "64:ff9b:1::a00:1": "local NAT64",
    "100::1": "private",
    "2001::1": "Teredo",
    "2001:db8::1": "private",
    "2002:7f00:1::": "6to4",
    "4000::1": "reserved",
    "fc00::1": "unique local",
    "fdff::1": "unique local",
    "fe80::1": "link-local",
    "fe80::1%eth0": "network interface",
    "fec0::1": "not a global unicast",
    "ff02::1": "multicast",
}
ALLOWED = ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "2606:4700::1111"]


@pytest.mark.parametrize(("address", "reason"), REFUSED.items())
def test_refused(address: str, reason: str) -> None:
    said = refusal(address, allow_loopback=False)
    assert said is not None
    assert reason in said


@pytest.mark.parametrize("address", ALLOWED)
def test_allowed(address: str) -> None:
    assert refusal(address, allow_loopback=False) is None


@pytest.mark.parametrize("address", [address for address in REFUSED if "loopback" not in REFUSED[address]])
def test_opening_loopback_opens_nothing_else(address: str) -> None:
    assert refusal(address, allow_loopback=True) is not None


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_loopback_can_be_opened(address: str) -> None:
    assert refusal(address, allow_loopback=True) is None


@given(st.ip_addresses())
def test_what_is_not_global_never_passes(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if not ip.is_global or ip.is_multicast:
        assert refusal(str(ip), allow_loopback=False) is not None


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "localhost"])
def test_every_spelling_of_loopback_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused, match=r"loopback|Invalid IPv4"):
        check(f"http://{host}:80/", allow_loopback=False)


def test_a_name_keeps_its_public_addresses_alone() -> None:
    def resolver(host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("hooks.example", 443)
        return ["10.0.0.1", "1.1.1.1", "fe80::1", "2606:4700::1111"]

    assert check("https://hooks.example/x", allow_loopback=False, resolver=resolver).addresses == (
        "1.1.1.1",
        "2606:4700::1111",
    )


def test_the_refusal_says_what_the_name_led_to() -> None:
    with pytest.raises(AddressRefused, match=r"hooks\.example is 10\.0\.0\.1 is a private address") as caught:
        check("http://hooks.example/", allow_loopback=True, resolver=lambda _host, _port: ["10.0.0.1"])
    assert caught.value.field == "url"


def test_names_beyond_ascii_are_resolved_in_punycode() -> None:
    asked: list[str] = []

    def resolver(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["1.1.1.1"]

    check("https://bücher.example/", allow_loopback=False, resolver=resolver)
    assert asked == ["xn--bcher-kva.example"]


@pytest.mark.parametrize(
    "url",
    [
        "ftp://1.1.1.1/",
        "http://",
        "//1.1.1.1",
        "http://user:word@1.1.1.1/",
        "http://1.1.1.1:99999/",
        "",
        "http://1.1.1.1:0/",
    ],
)
def test_urls_that_are_not_plain_http_are_refused(url: str) -> None:
    with pytest.raises(AddressRefused):
        check(url, allow_loopback=False)


def test_an_unknown_name_is_an_outage_and_no_refusal() -> None:
    with pytest.raises(OSError, match=r"not known|No address|Temporary failure"):
        check("http://no-such-host.invalid/", allow_loopback=False)


def test_the_systems_resolver_gives_each_address_once() -> None:
    addresses = resolve("localhost", 80)
    assert "127.0.0.1" in addresses
    assert len(addresses) == len(set(addresses))
