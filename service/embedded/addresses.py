"""Free TCP ports on loopback, and the check that the service's own address can be bound."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from typing import Final

from service.embedded.errors import StackFailed
from service.errors import SettingsError

__all__ = ["LOOPBACK", "check_bindable", "free_block", "free_port", "free_ports", "is_free"]

LOOPBACK: Final = "127.0.0.1"
# Above the range that `ray start` claims for workers (10002-19999), below the kernel's for
# outgoing connections (from 32768), so that neither takes a port between choice and use. Single
# ports and blocks come from ranges of their own: Ray refuses a block that holds one of its others.
_SINGLES: Final = range(20_000, 24_000)
_BLOCKS: Final = range(24_000, 32_768)
_ATTEMPTS: Final = 200


def is_free(port: int, *, host: str = LOOPBACK) -> bool:
    """Return whether a server could listen on this port now."""
    try:
        _bind(host, port).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Return `count` different free ports. Raises StackFailed where there are too few."""
    chosen: list[int] = []
    with contextlib.ExitStack() as held:  # held until all are chosen, so that none is chosen twice
        for port in random.sample(_SINGLES, len(_SINGLES)):
            with contextlib.suppress(OSError):
                held.callback(_bind(LOOPBACK, port).close)
                chosen.append(port)
            if len(chosen) == count:
                return chosen
    raise StackFailed(f"fewer than {count} ports are free between {_SINGLES.start} and {_SINGLES.stop - 1}")


def free_port(preferred: int) -> int:
    """Return the port that people expect where it is free, else another."""
    return preferred if is_free(preferred) else free_ports(1)[0]


def free_block(size: int) -> range:
    """Return `size` consecutive free ports. Raises StackFailed where there is no such block."""
    for _ in range(_ATTEMPTS):
        start = random.randrange(_BLOCKS.start, _BLOCKS.stop - size)  # noqa: S311 - spread, not secrecy
        block = range(start, start + size)
        if all(is_free(port) for port in block):
            return block
    raise StackFailed(f"no {size} consecutive ports are free between {_BLOCKS.start} and {_BLOCKS.stop - 1}")


def check_bindable(host: str, port: int) -> None:
    """Return if the service could listen there. Raises SettingsError with the way out if not."""
    try:
        _bind(host, port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = next(candidate for candidate in range(port + 1, 65_536) if is_free(candidate, host=host))
            message = f"port {port} on {host} is taken by another program; use a free one: SIMCLR_PORT={other}"
        elif error.errno == errno.EACCES:
            message = f"port {port} needs rights that this user lacks; use one of 1024 or more: SIMCLR_PORT=8000"
        else:
            message = f"{host!r} is no address of this machine ({error.strerror}); use SIMCLR_HOST=127.0.0.1"
        raise SettingsError(message, host=host, port=port) from error


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    server = socket.socket(family, kind, protocol)
    try:
        # As servers do: connections that linger after a close do not keep the port.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen(1)
    except OSError:
        server.close()
        raise
    return server
