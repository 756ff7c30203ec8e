"""The stack's parts start together, are kept, taken over, and ended; shown on small servers."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest

from service.embedded.addresses import free_ports, is_free
from service.embedded.errors import StackFailed
from service.embedded.stack import Stack
from service.embedded.state_directory import StateDirectory

SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
BROKEN = "import sys; print('the reason'); sys.exit(7)"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A part that needs nothing but Python."""

    name: str
    port: int
    working_dir: Path
    code: str = SERVER
    identity: str = "1"

    @property
    def title(self) -> str:
        return self.name

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def health_url(self) -> str:
        return self.url

    @property
    def ready_url(self) -> str:
        return self.url

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code, str(self.port)]

    def environment(self) -> Mapping[str, str]:
        return dict(os.environ)


@dataclass(frozen=True, kw_only=True)
class House:
    """A state directory, two parts, and the stacks started on them."""

    directory: StateDirectory
    ray: Server
    service: Server
    told: list[str]
    stacks: list[Stack]

    def stack(self, *parts: Server) -> Stack:
        def report(title: str, text: str) -> None:
            self.told.append(f"{title} {text}")

        stack = Stack(parts or (self.ray, self.service), directory=self.directory, report=report, hurried=Event())
        self.stacks.append(stack)
        return stack

    def pid(self, part: str) -> int:
        return self.directory.read_parts()[part].process.pid


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    ports = free_ports(2)
    directory = StateDirectory(path=tmp_path / "home")
    directory.prepare()
    house = House(
        directory=directory,
        ray=Server(name="ray", port=ports[0], working_dir=tmp_path),
        service=Server(name="service", port=ports[1], working_dir=tmp_path),
        told=[],
        stacks=[],
    )
    yield house
    for stack in house.stacks:
        stack.stop()
    assert is_free(ports[0])
    assert is_free(ports[1])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def test_start_returns_when_all_answer_and_stop_leaves_nothing(house: House) -> None:
    stack = house.stack()
    stack.start()
    assert not is_free(house.ray.port)
    assert not is_free(house.service.port)

    stack.stop()

    assert is_free(house.ray.port)
    assert is_free(house.service.port)
    assert house.directory.read_parts() == {}
    assert not house.directory.runtime_dir.exists()


def test_the_next_stack_takes_over_all_but_the_service(house: House) -> None:
    house.stack().start()
    before = house.directory.read_parts()

    house.stack().start()

    after = house.directory.read_parts()
    assert after["ray"] == before["ray"]
    assert after["service"].process != before["service"].process
    assert any("taken over" in line for line in house.told)


def test_a_part_of_another_version_is_replaced(house: House) -> None:
    house.stack().start()
    before = house.pid("ray")

    newer = Server(name="ray", port=house.ray.port, working_dir=house.ray.working_dir, identity="2")
    house.stack(newer).start()

    assert house.pid("ray") != before


def test_a_part_that_ends_while_starting_is_named_with_the_end_of_its_output(house: House) -> None:
    broken = Server(name="ray", port=house.ray.port, working_dir=house.ray.working_dir, code=BROKEN)
    stack = house.stack(broken, house.service)

    with pytest.raises(StackFailed, match=r"(?s)ray ended while starting.*the reason"):
        stack.start()
    stack.stop()

    assert is_free(house.service.port)


def test_a_part_that_dies_is_started_again_after_a_growing_delay(house: House) -> None:
    stack = house.stack()
    stack.start()
    now = time.monotonic()

    for delay_s in (0.5, 1.0):
        dead = house.pid("service")
        os.kill(dead, 9)
        wait_until(lambda: is_free(house.service.port))
        stack.tick(now)
        stack.tick(now + delay_s - 0.01)
        assert house.pid("service") == dead
        now += delay_s
        stack.tick(now)
        assert house.pid("service") != dead
        wait_until(lambda: not is_free(house.service.port))

    stack.stop()


def test_a_part_that_lives_and_stays_silent_is_replaced(house: House) -> None:
    stack = house.stack(house.ray)
    stack.start()
    silent = house.pid("ray")
    now = time.monotonic()
    os.kill(silent, 19)  # SIGSTOP
    mute = Server(name="ray", port=free_ports(1)[0], working_dir=house.ray.working_dir)
    stack._parts["ray"].component = mute  # where nothing answers at once, instead of after a timeout

    stack.tick(now + 30)
    assert house.pid("ray") == silent
    stack.tick(now + 61)
    stack.tick(now + 62)

    assert house.pid("ray") != silent
    stack.stop()
