"""A light path for small messages between the ranks of a CPU team: plain TCP, in the calling thread.

Global batch norm sends one message of a few kilobytes a layer and direction, and waits for it. Gloo
hands each to a thread of its own, which polls for the answer on a core that should compute; here
the caller itself writes to its peers and sleeps until they have written too. What arrives is bit
for bit what gloo's all-gather returns.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

__all__ = ["MAX_BYTES", "SmallMessages", "connected"]

logger = logging.getLogger(__name__)

MAX_BYTES: Final = 2**16  # all ranks send before they receive, so a message must fit what the kernel takes in
BUFFER_BYTES: Final = 4 * MAX_BYTES
CONNECT_S: Final = 20.0
TOKEN_BYTES: Final = 16
RANK_BYTES: Final = 4


@dataclass(frozen=True, kw_only=True)
class SmallMessages:
    """One open connection to every other rank; not for use by several threads at once."""

    rank: int
    peers: dict[int, socket.socket]  # by their rank

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return every rank's `tensor`, a CPU one of at most `MAX_BYTES`, as `[W, *tensor.shape]` in rank order.

        All ranks give the same shape and dtype. The result carries no gradient.

        Raises:
            ValueError: If the message is too large.
            ConnectionError: If a peer is gone.
            TimeoutError: If a peer sends nothing for as long as the team bears.
        """
        gathered = tensor.new_empty((len(self.peers) + 1, *tensor.shape))
        gathered[self.rank] = tensor.detach()
        rows = gathered.view(len(gathered), -1).view(torch.uint8).numpy()
        if rows.shape[1] > MAX_BYTES:
            raise ValueError(f"a message of {rows.shape[1]} bytes is no small one: at most {MAX_BYTES}")
        peer = self.rank
        try:
            for peer in self.peers:
                self.peers[peer].sendall(rows[self.rank])
            for peer in self.peers:
                _receive_into(self.peers[peer], memoryview(rows[peer]))
        except TimeoutError as error:
            raise TimeoutError(f"rank {peer} has sent nothing for as long as a collective may take") from error
        except OSError as error:
            raise ConnectionError(f"rank {peer} is gone: {error}") from error
        return gathered


@contextmanager
def connected(group: ProcessGroup, *, timeout: timedelta) -> Iterator[SmallMessages | None]:
    """Connect the ranks of a gloo `group` and yield the connections, closed afterwards; called by all ranks.

    Yields None on all ranks if any of them could not connect: what is small then goes over `group`
    too. `timeout` is how long a rank waits for a message of another.
    """
    with ExitStack() as stack:
        peers: dict[int, socket.socket] = {}
        reason = None
        try:
            peers = _meet(group, stack)
        except OSError as error:
            reason = f"{type(error).__name__}: {error}"
        if reasons := [reason for reason in _gathered(reason, group) if reason]:
            causes = "; ".join(sorted(set(reasons)))
            logger.warning("small messages go over gloo, for ranks cannot connect to each other: %s", causes)
            yield None
            return
        for connection in peers.values():
            connection.settimeout(timeout.total_seconds())
        yield SmallMessages(rank=dist.get_rank(group), peers=peers)


def _meet(group: ProcessGroup, stack: ExitStack) -> dict[int, socket.socket]:
    """Return a connection to each other rank: every rank calls those before it and is called by those behind."""
    own, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    token = secrets.token_bytes(TOKEN_BYTES)  # shown by a caller, so that no stranger takes a rank's place
    with ExitStack() as listening:
        try:
            listener = listening.enter_context(_listener(backlog=num_ranks))
        except OSError:
            _gathered(None, group)
            raise
        doors = _gathered((listener.getsockname()[:2], token), group)
        if not all(doors):
            raise ConnectionError("a rank cannot listen")
        peers = {}
        for peer in range(own):
            address, their_token = doors[peer]
            peers[peer] = stack.enter_context(socket.create_connection(address, timeout=CONNECT_S))
            peers[peer].sendall(their_token + own.to_bytes(RANK_BYTES))
        listener.settimeout(CONNECT_S)
        while len(peers) < num_ranks - 1:
            connection = stack.enter_context(listener.accept()[0])
            connection.settimeout(CONNECT_S)
            greeting = bytearray(TOKEN_BYTES + RANK_BYTES)
            _receive_into(connection, memoryview(greeting))
            if greeting[:TOKEN_BYTES] == token:
                peers[int.from_bytes(greeting[TOKEN_BYTES:])] = connection
    for connection in peers.values():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    return dict(sorted(peers.items()))


def _listener(*, backlog: int) -> socket.socket:
    """Return an open door of this rank, on a port that was free."""
    host = _own_host()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, backlog=backlog)


def _gathered(value: Any, group: ProcessGroup) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def _own_host() -> str:
    """Return the address at which gloo would listen, as an address of IPv4 where there is one."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]  # gloo takes several
    if not interface:
        return socket.gethostbyname(socket.gethostname())
    families = (socket.AF_INET, socket.AF_INET6)
    addresses = [found for found in psutil.net_if_addrs().get(interface, []) if found.family in families]
    if not addresses:
        raise OSError(f"the interface {interface} of GLOO_SOCKET_IFNAME has no address")
    return str(min(addresses, key=lambda found: families.index(found.family)).address)


def _receive_into(connection: socket.socket, message: memoryview) -> None:
    received = 0
    while received < len(message):
        count = connection.recv_into(message[received:])
        if not count:
            raise ConnectionError("the connection was closed")
        received += count
