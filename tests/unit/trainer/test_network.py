"""The address and the interface at which other nodes reach this one."""

import socket

import pytest

from tests.harness.ipv6 import needs_ipv6
from trainer.network import free_address, interface_of


def test_the_interface_of_an_address_is_found_by_the_address() -> None:
    assert interface_of("127.0.0.1") == "lo"


def test_an_address_of_another_machine_has_no_interface_here() -> None:
    assert interface_of("192.0.2.77") is None


@pytest.mark.parametrize(
    ("host", "written"), [("127.0.0.1", "127.0.0.1"), pytest.param("::1", "[::1]", marks=needs_ipv6)]
)
def test_a_free_address_can_be_listened_on(host: str, written: str) -> None:
    name, _, port = free_address(host).rpartition(":")
    assert name == written
    with socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
        pass
