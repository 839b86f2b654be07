"""Which endpoints there are: a list, or a file that is read again as it changes.

A file is YAML or JSON: a list of addresses or of mappings with ``address`` and what is known of the
endpoint, or Kubernetes's ``EndpointSlice`` (``kubectl get endpointslices -o json``). An address is
``IP:PORT``, or ``NAME:PORT`` for all that DNS knows of the name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.policies.plugins import client

NUMBERS = ("max_seats", "decode_tokens_per_s")  # features of an endpoint that stand still
MOST = 10_000  # endpoints
# What somebody knows of an endpoint, from all else that its entry says.
Describe = Callable[[Mapping[str, Any]], Mapping[str, float]]


@dataclass(frozen=True)
class Endpoint:
    """An address, ``IP:PORT``, and what is known of who answers there."""

    address: str
    numbers: Mapping[str, float] = field(default_factory=dict)


def plain(entry: Mapping[str, Any]) -> Mapping[str, float]:
    """Numbers that an entry says itself; any other key is an ``UnknownNameError``."""
    found = {}
    for key, value in entry.items():
        if key not in NUMBERS:
            raise UnknownNameError("key of an endpoint", str(key), ("address", *NUMBERS))
        number = client.number(value)
        if number is None or number <= 0:
            raise InputError(f"{key} of an endpoint must be above 0, not {client.shown(value)}")
        found[key] = number
    return found


class Endpoints:
    """The endpoints as they were last read; ``refresh`` reads them again.

    Raises ``InputError`` for what can't be read at the start; later the last that could stays.
    """

    def __init__(self, given: Iterable[str] | Path, describe: Describe = plain) -> None:
        self._path = given if isinstance(given, Path) else None
        self._describe = describe
        self._entries = (
            [{"address": one} for one in given]
            if not isinstance(given, Path)
            else self._read(given)
        )
        self._stamp = self._stamp_now()
        self.known = self._resolved()
        if not self.known and self._path is None:
            raise InputError("a picker needs endpoints: --endpoints IP:PORT,... or a file of them")

    async def refresh(self) -> bool:
        """Looks at the file and at DNS; whether the endpoints are others now.

        Raises ``InputError`` where the file can't be read any more.
        """
        stamp = self._stamp_now()
        if self._path is not None and stamp != self._stamp:
            self._entries = self._read(self._path)
            self._stamp = stamp
        elif not any(map(_by_name, self._entries)):
            return False
        before, self.known = self.known, await asyncio.to_thread(self._resolved)
        return before != self.known

    def _stamp_now(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            found = self._path.stat()
        except OSError as error:
            raise InputError(f"can't read {self._path}: {error.strerror}") from None
        return found.st_mtime_ns, found.st_size

    def _read(self, path: Path) -> list[dict[str, Any]]:
        try:
            said = yaml.safe_load(path.read_text("utf-8"))
        except OSError as error:
            raise InputError(f"can't read {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{path} is neither YAML nor JSON: {error}") from None
        rows = list(_slices(said)) if isinstance(said, dict) else said or []
        if not isinstance(rows, list) or len(rows) > MOST:
            raise InputError(f"{path}: expected a list of up to {MOST} endpoints")
        entries = []
        for row in rows:
            entry = {"address": row} if isinstance(row, str) else row
            if not isinstance(entry, dict) or not isinstance(entry.get("address"), str):
                raise InputError(f"{path}: an endpoint is an address, not {client.shown(row)}")
            self._described(entry)
            _host_port(entry["address"])
            entries.append(entry)
        return entries

    def _described(self, entry: Mapping[str, Any]) -> Mapping[str, float]:
        return self._describe({key: value for key, value in entry.items() if key != "address"})

    def _resolved(self) -> dict[str, Endpoint]:
        found = {}
        for entry in self._entries:
            numbers = self._described(entry)
            for address in _addresses(*_host_port(entry["address"])):
                found[address] = Endpoint(address, numbers)
        return found


def joined(host: str, port: int) -> str:
    """``IP:PORT``, with brackets where the address has colons."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f"an endpoint is IP:PORT or NAME:PORT, not {client.shown(text)}")
    return host, int(port)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _by_name(entry: Mapping[str, Any]) -> bool:
    return not _is_ip(_host_port(entry["address"])[0])


def _addresses(host: str, port: int) -> list[str]:
    """All addresses of a host; none while DNS knows none."""
    if _is_ip(host):
        return [joined(host, port)]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return sorted({joined(str(address[0]), port) for *_, address in found})


def _slices(said: Mapping[str, Any]) -> Iterable[dict[str, str]]:
    """The ready endpoints of an ``EndpointSlice``, or of a list of them."""
    try:
        for one in said.get("items", [said]):
            ports = [port["port"] for port in one["ports"] if port.get("port")]
            for endpoint in one.get("endpoints") or []:
                if (endpoint.get("conditions") or {}).get("ready") is not False:
                    for host in endpoint["addresses"]:
                        yield {"address": joined(host, ports[0])}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"endpoints: neither a list nor an EndpointSlice: {error!r}") from None
