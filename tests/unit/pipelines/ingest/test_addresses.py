import asyncio
from ipaddress import ip_address

import pytest

from occam.errors import ForbiddenSource, SourceUnavailable
from pipelines.ingest.addresses import check_spelling, checked_addresses, is_public

# What no fetch may reach, and what any may.
PRIVATE = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.0.1
169.254.169.254 169.254.0.1 172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1
198.19.255.255 198.51.100.7 203.0.113.9 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 168.63.129.16
:: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 fe80::1 fec0::1 fc00::1 fd00:ec2::254
ff02::1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 100::1 2001::1 2001:0:7f00:1::1 2001:db8::1 2002:7f00:1::
3fff::1 5f00::1 4000::1
"""
PUBLIC = """
1.1.1.1 8.8.8.8 93.184.215.14 100.63.255.255 100.128.0.1 172.15.255.255 172.32.0.1 192.0.1.1 223.255.255.255
2606:4700::1111 2a00:1450:4001:80b::200e 2400:cb00::1 ::ffff:8.8.8.8 64:ff9b::808:808
"""
UNUSUAL = "2130706433 0x7f000001 0x7f.1 127.1 127.0.1 0177.0.0.1 0300.0250.0.1 127.0.0.1. 1.2.3.4.5 foo.0x7f 0x"
USUAL = "example.org 8.8.8.8 0xcafe.example 1.example ::1 2001:db8::1"


@pytest.mark.parametrize("text", PRIVATE.split())
def test_refused_addresses(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", PUBLIC.split())
def test_open_addresses(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize("host", UNUSUAL.split())
def test_unusual_spellings_of_ipv4_are_refused(host: str) -> None:
    with pytest.raises(ForbiddenSource, match="unusual"):
        check_spelling(host)


@pytest.mark.parametrize("host", USUAL.split())
def test_usual_spellings_pass(host: str) -> None:
    check_spelling(host)


def _check(*addresses: str, private: bool = False) -> list[str]:
    async def resolver(host: str, port: int) -> list[str]:
        return list(addresses)

    return asyncio.run(checked_addresses("video.test", 80, private=private, resolver=resolver))


def test_one_private_address_among_public_ones_refuses_the_host_and_is_not_revealed() -> None:
    with pytest.raises(ForbiddenSource) as caught:
        _check("8.8.8.8", "10.1.2.3")
    assert "10.1.2.3" not in str(caught.value)


def test_zone_indices_are_refused() -> None:
    with pytest.raises(ForbiddenSource):
        _check("fe80::1%eth0")


def test_a_name_that_exists_inside_is_refused_like_one_that_does_not_exist() -> None:
    answers = []
    for addresses in ((), ("10.1.2.3",), ("8.8.8.8", "10.1.2.3")):
        with pytest.raises(ForbiddenSource, match=r"video\.test is not known on the public network") as caught:
            _check(*addresses)
        answers.append(str(caught.value))
    assert len(set(answers)) == 1
    with pytest.raises(SourceUnavailable, match="no address"):
        _check(private=True)


def test_public_answers_and_opened_private_ones_pass() -> None:
    assert _check("8.8.8.8", "1.1.1.1") == ["8.8.8.8", "1.1.1.1"]
    assert _check("127.0.0.1", private=True) == ["127.0.0.1"]
