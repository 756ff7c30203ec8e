"""What happens on a connection beside its requests: heads that never end, bytes that are no HTTP, a full house.

uvicorn waits for ever for the rest of a head, counts those who do so against everyone else, and
answers in plain text. Here all of them are told in a problem document, as of every other error.
It also waits for ever for a client to read what is left of an answer that was broken off.
"""

from __future__ import annotations

import asyncio
import weakref
from http import HTTPStatus
from typing import Any, Final

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.edge import slow_client
from service.edge.problems import Problem, problem_response

__all__ = ["HttpConnection"]

HEAD_TIMEOUT_S: Final = 20.0  # from the first byte of a request, or the connection, to the end of the head


class HttpConnection(H11Protocol):
    """A connection that is dropped where a head takes too long, or its client too long to read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._served, self._most = self.app, self.limit_concurrency
        self.limit_concurrency = None  # ours instead
        self._deadline: asyncio.TimerHandle | None = None
        self._last_read: asyncio.TimerHandle | None = None
        self._closing: asyncio.TimerHandle | None = None
        self.app_state = {
            **self.app_state,
            slow_client.CONNECTION: weakref.ref(self),
        }  # what requests find in their state

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; what they make a request goes to the app, or is refused where too many are under way."""
        self.app = _refuse if self._is_full() else self._served
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._forget_deadline()
        for timer in (self._last_read, self._closing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._end(Problem(400, "request_malformed", msg))

    def shutdown(self) -> None:
        """End with the server; who was told already that there is no more is waited for no longer."""
        if self._last_read is not None:
            self.transport.abort()
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Close, since nothing more is asked for; a whole answer may still be on its way."""
        super().timeout_keep_alive_handler()
        self._close_unless_read()

    def let_go(self, *, within_s: float) -> bool:
        """Take what is sent now as the last, unread as it is, and close when it was read or in `within_s`."""
        if not self.cycle.response_started:
            self.give_up()  # what is unread is an earlier answer, and this one has no beginning to go on from
            return False
        self.cycle.keep_alive = False
        self.flow.resume_writing()
        self._last_read = self.loop.call_later(within_s, self.transport.abort)
        return True

    def give_up(self) -> None:
        """Close at once and forget what was not read, unless the answer is whole."""
        if not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.transport.abort()

    def _is_full(self) -> bool:
        # Not by connections, as uvicorn counts: those that ask for nothing shut nobody out.
        return self._most is not None and len(self.tasks) >= self._most

    def _watch_head(self) -> None:
        """Hold to the deadline while a head is due, and to none while a request is answered."""
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            self._forget_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._end(Problem(408, "head_too_slow", f"the head of a request must arrive within {HEAD_TIMEOUT_S:g} s"))

    def _end(self, problem: Problem) -> None:
        """Close, with an answer unless one has begun."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_bytes_of(problem))
        self.transport.close()
        self._close_unless_read()

    def _close_unless_read(self, unread_bytes: int | None = None) -> None:
        """See that a connection which is closing is closed: past a while in which nothing of the rest was read."""
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes == unread_bytes:
            self.transport.abort()
        elif left_bytes:
            self._closing = self.loop.call_later(slow_client.SLOW_CLIENT_TIMEOUT_S, self._close_unless_read, left_bytes)


def _bytes_of(problem: Problem) -> bytes:
    response = problem_response(problem, instance="/")
    headers = [*response.raw_headers, (b"connection", b"close")]
    lines = [f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}".encode()]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    problem = Problem(503, "overloaded", "too many requests are under way; come back later")
    await problem_response(problem, instance=scope["path"])(scope, receive, send)
