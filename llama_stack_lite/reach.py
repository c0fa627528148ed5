"""Which addresses a stranger's URL may lead to: public ones, and those that the operator allows."""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import TypeVar

from .errors import InvalidRequest

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
T = TypeVar("T")
Resolve = Callable[[str, int], Awaitable[list[str]]]

# IANA's registries of special-purpose addresses; Python's `is_global` differs from release to release
SPECIAL: list[Network] = [
    ip_network(each)
    for each in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' NAT
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's own services, at an address that only looks public
        "169.254.0.0/16",  # link-local, and what clouds tell their machines
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation, as are the next ones of three parts
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "2001::/23",  # Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which wraps any IPv4 address
        "3fff::/20",  # documentation
    )
]
UNICAST = IPv6Network("2000::/3")  # all else in IPv6 is local, multicast, reserved or a wrapper
NAT64 = IPv6Network("64:ff9b::/96")  # how IPv6-only networks name the IPv4 hosts of the world

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
# what some resolvers take for an IPv4 address: 2130706433, 0x7f.1, 0177.0.0.1
_NUMBER = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)")


@dataclass(frozen=True, slots=True)
class Rule:
    """What may be reached beside the public: a network or a name, at one port or at all."""

    where: Network | str
    port: int | None = None

    @classmethod
    def of(cls, text: str) -> "Rule":
        """Read `10.1.0.0/16`, `files.internal`, `files.internal:8080` or `[fd00::1]:80`.

        Raises `ValueError` saying what it should look like.
        """
        text = text.strip().lower()
        if network := _network(text.strip("[]")):
            return cls(network)
        host, colon, port = text.rpartition(":")
        if not colon:
            host, port = text, ""
        where = _network(host.strip("[]")) or host
        is_port = port.isdecimal() and 0 < int(port) < 65536
        if (colon and not is_port) or (isinstance(where, str) and not _NAME.fullmatch(where)):
            raise ValueError(f"`{text}` is no network, host or host:port, such as 10.1.0.0/16 or files:8080")
        return cls(where, int(port) if colon else None)

    def allows(self, host: str, port: int, address: Address) -> bool:
        if self.port not in (None, port):
            return False
        if isinstance(self.where, str):
            return host == self.where
        return address.version == self.where.version and address in self.where


def _network(text: str) -> Network | None:
    try:
        return ip_network(text)
    except ValueError:
        return None


async def resolved(host: str, port: int) -> list[str]:
    """The IP addresses of a name, by the system's resolver; raises `OSError` where there is none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Reach:
    """Decides by the addresses that a name resolves to, never by the name alone.

    Whoever connects must connect to the addresses it got from here: a name that is resolved a second time
    may by then mean another machine.
    """

    def __init__(self, allow: Iterable[str] = (), *, resolve: Resolve = resolved) -> None:
        self.rules = [Rule.of(text) for text in allow]
        self.resolve = resolve

    async def addresses(self, host: str, port: int, *, param: str | None = None) -> list[str]:
        """The addresses of a host, all of which may be reached; `host` is in ASCII, as in DNS.

        Raises `InvalidRequest`, in the same words for a name that is unknown and for one that leads
        inside: which names our network knows is nobody's business.
        """
        name = host.lower().removesuffix(".")
        found = await self._found(name, port)
        if not found or not all(self._may(name, port, address) for address in found):
            raise InvalidRequest(
                f"`{host}` leads to no public address; whoever runs this server may list it in `fetch.allow`",
                param=param,
            )
        return [str(address) for address in found]

    async def _found(self, name: str, port: int) -> list[Address]:
        try:
            return [ip_address(name)]
        except ValueError:
            pass
        if not _NAME.fullmatch(name) or _NUMBER.fullmatch(name):
            return []
        try:
            return [ip_address(each) for each in await self.resolve(name, port)]
        except (OSError, ValueError):  # not found, or an address with a zone, which is local
            return []

    def _may(self, host: str, port: int, address: Address) -> bool:
        if isinstance(address, IPv6Address) and address.scope_id:
            return False
        return is_public(address) or any(rule.allows(host, port, address) for rule in self.rules)


def is_public(address: Address) -> bool:
    """Whether an address is one that the whole internet can reach."""
    if isinstance(address, IPv6Address):
        if address in NAT64:
            return is_public(IPv4Address(address.packed[-4:]))
        if address not in UNICAST:
            return False
    return not any(address in network for network in SPECIAL if network.version == address.version)


async def first_reached(
    addresses: Sequence[str], ask: Callable[[str], Awaitable[T]], *, unreached: tuple[type[Exception], ...]
) -> T:
    """What the first address answers that can be reached; raises what the last one raised."""
    *others, last = addresses
    for address in others:
        with suppress(*unreached):
            return await ask(address)
    return await ask(last)
