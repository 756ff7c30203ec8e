from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from tests.harness.ipv6 import needs_ipv6
from tests.unit.trainer.gloo_ranks import ranks
from trainer.small_messages import MAX_BYTES, SmallMessages, _listener


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair()
    with first, second:
        yield first, second


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_it_gathers_what_the_group_gathers(num_ranks: int) -> None:
    for found in ranks(num_ranks):
        for light, heavy in found["light"]["gathered"]:
            assert light.dtype is heavy.dtype
            assert torch.equal(light, heavy)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_where_one_rank_cannot_connect_none_has_a_light_path(num_ranks: int) -> None:
    for found in ranks(num_ranks):
        assert not found["fallback"]["has_light_path"]
        assert found["fallback"]["log"].count("over gloo") == 1
        assert "nowhere0" in found["fallback"]["log"]


def test_messages_of_any_split_arrive_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    first, second = (SmallMessages(rank=r, peers={1 - r: pair[r]}) for r in range(2))
    with ThreadPoolExecutor(1) as other:
        for size in (1, 3, MAX_BYTES // 4):
            theirs = other.submit(second.all_gather, torch.full((size,), 1.0, requires_grad=True))
            mine = first.all_gather(torch.full((size,), 0.0))
            assert torch.equal(mine, torch.arange(2.0).unsqueeze(1).expand(2, size))
            assert torch.equal(theirs.result(), mine)
            assert not theirs.result().requires_grad


def test_a_peer_that_is_gone_is_named(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    with pytest.raises(ConnectionError, match="rank 3 is gone"):
        SmallMessages(rank=0, peers={3: pair[0]}).all_gather(torch.ones(2))


def test_a_peer_that_dies_in_the_middle_of_a_message_is_named(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].send(b"half")
    pair[1].shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError, match="rank 1 is gone"):
        SmallMessages(rank=0, peers={1: pair[0]}).all_gather(torch.ones(2))


def test_a_silent_peer_is_not_waited_for_for_ever(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].settimeout(0.02)
    with pytest.raises(TimeoutError, match="rank 1 has sent nothing"):
        SmallMessages(rank=0, peers={1: pair[0]}).all_gather(torch.ones(2))


def test_a_large_message_is_refused(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(ValueError, match=str(MAX_BYTES)):
        SmallMessages(rank=0, peers={1: pair[0]}).all_gather(torch.ones(MAX_BYTES // 4 + 1))


@pytest.mark.parametrize(
    ("interfaces", "host"),
    [
        pytest.param("six0", "::1", marks=needs_ipv6),
        ("lo,six0", "127.0.0.1"),
        pytest.param("six0,lo", "::1", marks=needs_ipv6),
    ],
    ids=lambda value: value,
)
def test_a_rank_listens_at_the_first_interface_in_either_family(
    monkeypatch: pytest.MonkeyPatch, interfaces: str, host: str
) -> None:
    only_six = [found for found in psutil.net_if_addrs()["lo"] if found.family is socket.AF_INET6]
    addresses = {**psutil.net_if_addrs(), "six0": only_six}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", interfaces)
    with _listener(backlog=1) as listener, socket.create_connection(listener.getsockname()[:2]) as caller:
        assert caller.getpeername()[0] == host
