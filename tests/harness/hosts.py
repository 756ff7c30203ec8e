"""Hosts of a small network, each a set of namespaces: nothing but `shared` is common to two of them.

A host has its own network, processes, mounts (`/tmp` and `/dev/shm` are its disk and its memory) and
name, which resolves to loopback as on a plain Debian. Other names nobody knows, and a host learns so
at once: with a name server out of reach torch would wait for it, 10 s for each process group. Hosts
hang on one bridge, at which this machine has the last address. The kernel itself ends a host when its
first process is killed, and kills that when the process that made it ends: nothing outlives a test,
however it ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

__all__ = ["Cable", "Host", "Lan", "reason_for_no_hosts"]

_NAMESPACES: Final = ("--net", "--pid", "--mount", "--uts", "--ipc")
_MTU: Final = 9000  # as in a cluster's own network
_TOOLS: Final = ("ip", "tc", "unshare", "nsenter", "setpriv", "mount")

# SIGCHLD is ignored, and `sleep` inherits that: what is orphaned and ends leaves no zombie.
_INIT: Final = """
set -e
trap '' CHLD
hostname "$1"
printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' "$1" > "$2/hosts"
mount --bind "$2/hosts" /etc/hosts
echo 'nameserver 127.0.0.1' > "$2/resolv.conf"
mount --bind "$2/resolv.conf" /etc/resolv.conf
for code in "${@:4}"; do mkdir -p "$2/${code#/tmp/}"; mount --bind "$code" "$2/${code#/tmp/}"; done
mount --rbind "$2" /tmp
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs "$3"
ip link set lo up
echo ready
exec sleep infinity
"""


def reason_for_no_hosts() -> str | None:
    """Return why this machine can make no hosts, None if it can."""
    if os.geteuid() != 0:
        return "hosts as namespaces need root"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    return f"hosts as namespaces need {', '.join(missing)}" if missing else None


@dataclass(frozen=True, kw_only=True)
class Cable:
    """A cable that is slower than the machine, each way."""

    delay_ms: float
    mbit_per_s: float


class Lan:
    """A bridge and the hosts on it; every name and address is of this one alone."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="simclr-lan-", dir="/var/tmp"))
        self.shared = self.folder / "shared"
        self.hosts: dict[str, Host] = {}
        self._disks = self.folder / "disks"

    def __enter__(self) -> Self:
        self.shared.mkdir()
        self._disks.mkdir()
        taken = subprocess.run(["ip", "-brief", "address"], check=True, capture_output=True, text=True).stdout
        number = next(number for number in _shuffled_numbers() if f"10.77.{number}." not in taken)
        self.bridge, self._network = f"lan{number}", f"10.77.{number}"
        _ip(f"link add {self.bridge} type bridge")
        _ip(f"address add {self.address} dev {self.bridge}")
        _ip(f"link set {self.bridge} up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in self.hosts.values():
            host.power_off()
        _ip(f"link delete {self.bridge}")
        shutil.rmtree(self.folder)

    @property
    def address(self) -> str:
        """Return this machine's address in the network, with the prefix length."""
        return f"{self._network}.254/24"

    @property
    def gateway(self) -> str:
        """Return the address at which hosts reach this machine."""
        return self.address.partition("/")[0]

    def add_host(self, name: str, *, cable: Cable | None = None) -> Host:
        """Return a new host, switched on; without a `cable` of its own it has one as fast as the machine."""
        number = len(self.hosts) + 1
        host = self.hosts[name] = Host(
            name=name,
            number=number,
            address=f"{self._network}.{number}",
            bridge=self.bridge,
            gateway=self.gateway,
            disks=self._disks,
            cable=cable,
        )
        host.power_on()
        return host


class Host:
    """One host; switched on again, it has a fresh disk and its old address."""

    def __init__(
        self, *, name: str, number: int, address: str, bridge: str, gateway: str, disks: Path, cable: Cable | None
    ) -> None:
        self.name = name
        self.address = address
        self.port = f"{bridge}p{number}"  # of the bridge: the other end of this host's cable
        self._number = number
        self._bridge = bridge
        self._gateway = gateway
        self._disks = disks
        self._cable = cable
        self._maker: subprocess.Popen[str] | None = None
        self._started: list[subprocess.Popen[bytes]] = []
        self._init_pid = 0
        self._pid_namespace = ""

    @property
    def is_on(self) -> bool:
        """Return whether it is switched on."""
        return self._maker is not None

    def power_on(self) -> None:
        """Make the namespaces and plug the cable in."""
        self.disk = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=self._disks))
        with (self.disk / "init.log").open("ab") as log:
            self._maker = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "unshare", *_NAMESPACES),
                    *("--fork", "--kill-child", "--mount-proc"),
                    *("bash", "-c", _INIT, "bash", self.name, str(self.disk), str(self._disks), *_code_in_tmp()),
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        if self._maker.stdout is None or self._maker.stdout.readline() != "ready\n":
            raise RuntimeError(f"host {self.name} did not come up: {(self.disk / 'init.log').read_text()}")
        self._maker.stdout.close()
        (init,) = psutil.Process(self._maker.pid).children()
        self._init_pid = init.pid
        self._pid_namespace = _pid_namespace(init.pid)
        self._plug_in()

    def _plug_in(self) -> None:
        far_end = f"{self.port}h"
        if self._cable is None:
            _ip(f"link add {self.port} type veth peer name {far_end}")
        else:
            self._started.append(_start_cable(self.port, far_end, self._cable))
        _ip(f"link set {self.port} mtu {_MTU} master {self._bridge} up")
        # The hardware address stays, so that no neighbour has to unlearn it.
        _ip(f"link set {far_end} mtu {_MTU} address 02:77:00:00:00:{self._number:02x}")
        _ip(f"link set {far_end} netns {self._init_pid} name eth0")
        for words in (
            f"address add {self.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {self._gateway}",
        ):
            self.run(["ip", *words.split()])

    def power_off(self) -> None:
        """End every process of the host at once, as a lost machine does."""
        if self._maker is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init_pid, signal.SIGKILL)
        for process in self._started:  # those that ran a command in the host; one that is frozen could end nothing
            process.kill()
            process.wait()
        self._maker.wait()
        self._maker, self._started = None, []
        subprocess.run(["ip", "link", "delete", self.port], check=False, capture_output=True)  # may be gone already

    def command(self, words: Sequence[str]) -> list[str]:
        """Return the words that run a command in this host."""
        target = ("nsenter", "--target", str(self._init_pid), *_NAMESPACES)
        return [*target, "--", *words]

    def run(self, words: Sequence[str], *, timeout_s: float = 30) -> str:
        """Run a command in this host and return its output; raises if it fails."""
        answer = subprocess.run(
            self.command(words), check=True, capture_output=True, text=True, timeout=timeout_s, cwd="/"
        )
        return answer.stdout

    def start(self, words: Sequence[str], *, environment: Mapping[str, str], log: str) -> None:
        """Start a command in this host; its output goes into `log` on the host's disk."""
        with (self.disk / log).open("ab") as output:
            started = subprocess.Popen(
                self.command(words),
                env=dict(environment),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is not for the host
            )
        self._started.append(started)

    def processes(self, *words: str) -> list[psutil.Process]:
        """Return the host's processes whose command line has all these words, its first one left out."""
        return [process for process in self._members() if all(word in _line(process) for word in words)]

    def freeze(self) -> None:
        """Stop every process of the host, as a machine that hangs does."""
        for process in self._members():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        """Let them go on."""
        for process in self._members():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def cut(self) -> None:
        """Pull the cable out."""
        _ip(f"link set {self.port} down")

    def mend(self) -> None:
        """Plug the cable in again."""
        _ip(f"link set {self.port} up")

    def slow_down(self, *, rate: str) -> None:
        """Let both directions of the cable carry `rate` at most, such as `20mbit`."""
        for words in (["tc"], self.command(["tc"])):
            device = self.port if words == ["tc"] else "eth0"
            shaping = f"qdisc replace dev {device} root tbf rate {rate} burst 64kb latency 200ms"
            subprocess.run([*words, *shaping.split()], check=True)

    def speed_up(self) -> None:
        """Take the limit off again."""
        subprocess.run(["tc", "qdisc", "delete", "dev", self.port, "root"], check=True)
        self.run(["tc", "qdisc", "delete", "dev", "eth0", "root"])

    def _members(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            if process.pid != self._init_pid and _pid_namespace(process.pid) == self._pid_namespace:
                yield process


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def _start_cable(near_end: str, far_end: str, cable: Cable) -> subprocess.Popen[bytes]:
    words = (near_end, far_end, str(cable.delay_ms), str(cable.mbit_per_s))
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.harness.slow_cable", *words],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
    )
    if process.stdout is None or process.stdout.readline() != b"ready\n":
        raise RuntimeError(f"the cable {near_end} did not come up")
    process.stdout.close()
    return process


def _shuffled_numbers() -> list[int]:
    return secrets.SystemRandom().sample(range(1, 255), 254)


def _code_in_tmp() -> list[str]:
    """Return the folders of this project and its interpreter that a host's own /tmp would hide."""
    folders = {Path(__file__).parents[2], Path(sys.prefix), Path(sys.base_prefix)}
    return sorted(str(folder) for folder in folders if folder.is_relative_to("/tmp"))  # noqa: S108 - not written to


def _pid_namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""  # it has ended


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
