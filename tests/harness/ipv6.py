"""Whether this machine has a loopback of IPv6; some containers have none."""

from __future__ import annotations

import socket

import pytest

__all__ = ["needs_ipv6"]


def _has_loopback() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not _has_loopback(), reason="this machine has no loopback of IPv6")
