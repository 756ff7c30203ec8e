"""This node's place in the network, as other nodes see it."""

from __future__ import annotations

import socket

import psutil

__all__ = ["free_address", "interface_of"]


def interface_of(host: str) -> str | None:
    """Return the name of the network interface that has the address `host`; None if none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == host for address in addresses):
            return name
    return None


def free_address(host: str) -> str:
    """Return `host` with a port that is free on it, as part of an address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
