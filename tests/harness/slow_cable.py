"""A cable of given delay and rate, for kernels without `tc netem`: a process that hands frames on late.

    python -m tests.harness.slow_cable LEFT RIGHT DELAY_MS MBIT

It makes the network devices LEFT and RIGHT, says `ready`, and what goes into one comes out of the
other once the cable was free for it and the delay is over; what would wait longer than a fifth of
a second for a free cable is lost, as in a router. The devices end with the process.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import threading
import time
from collections import deque
from typing import Final

_TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
_IFF_TAP_NO_PI: Final = 0x0002 | 0x1000
_MAX_FRAME_BYTES: Final = 65_550
_MAX_WAIT_S: Final = 0.2


def main() -> None:
    left, right = (_device(name) for name in sys.argv[1:3])
    delay_s, bits_per_s = float(sys.argv[3]) / 1e3, float(sys.argv[4]) * 1e6
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    back = threading.Thread(target=_carry, args=(right, left, delay_s, bits_per_s), daemon=True)
    back.start()
    _carry(left, right, delay_s, bits_per_s)


def _device(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP_NO_PI))
    os.set_blocking(device, False)
    return device


def _carry(source: int, sink: int, delay_s: float, bits_per_s: float) -> None:
    waiting: deque[tuple[float, bytes]] = deque()  # (when it comes out, frame)
    free_at = 0.0
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _put(sink, waiting.popleft()[1])
        rest_s = waiting[0][0] - now if waiting else None
        if not select.select([source], [], [], rest_s)[0]:
            continue
        try:
            frame = os.read(source, _MAX_FRAME_BYTES)
        except OSError:
            return  # the device is gone, with the host that had it
        now = time.monotonic()
        if free_at - now < _MAX_WAIT_S:
            free_at = max(free_at, now) + 8 * len(frame) / bits_per_s
            waiting.append((free_at + delay_s, frame))


def _put(sink: int, frame: bytes) -> None:
    try:
        os.write(sink, frame)
    except OSError:
        return  # the other end is down or full: a frame lost, which TCP bears


if __name__ == "__main__":
    main()
