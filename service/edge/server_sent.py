"""Server-sent events as bytes, made once for all who are told them, and the response that streams them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from starlette.types import Receive, Scope, Send

from service.edge import slow_client

__all__ = ["EVENT_STREAM", "EventStream", "comment", "server_sent"]

# What OpenAPI 3.2 says of such an answer.
EVENT_STREAM: Final[dict[str, Any]] = {
    "text/event-stream": {
        "itemSchema": {
            "type": "object",
            "properties": {
                "data": {"type": "string"},
                "event": {"type": "string"},
                "id": {"type": "string"},
                "retry": {"type": "integer", "minimum": 0},
            },
        }
    }
}
_HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter is for proxies


def server_sent(kind: str, data: dict[str, Any], *, sequence: int | None = None) -> bytes:
    """Return an event of this kind; `sequence`, if any, becomes the id that a client resumes from.

    Raises:
        ValueError: For NaN and infinities, which are no JSON.
    """
    text = json.dumps(data, allow_nan=False)
    return format_sse_event(event=kind, data_str=text, id=None if sequence is None else str(sequence))


def comment(text: str, *, retry_ms: int) -> bytes:
    """Return a line that clients pass over, with the time in which they shall come back to a broken stream."""
    return format_sse_event(comment=text, retry=retry_ms)


class EventStream(StreamingResponse):
    """Streams bytes as they are.

    FastAPI's own response for streams turns each event into bytes anew for each client, on its way
    through two tasks and two queues, and sets a clock of its own beside our heartbeat.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        """Stream `events`, and end them when the client has gone."""
        super().__init__(events, headers=_HEADERS)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; a client that reads none of them for too long is left the reason why it gets no more."""
        try:
            await super().__call__(scope, receive, send)
        except slow_client.SlowClient:
            connection = slow_client.connection_of(scope)
            if connection is not None and connection.let_go(within_s=slow_client.LAST_READ_S):
                await send({"type": "http.response.body", "body": _dropped(), "more_body": False})
            raise

    async def stream_response(self, send: Send) -> None:
        """Send everything there is."""
        async with aclosing(self._events):
            await super().stream_response(send)


def _dropped() -> bytes:
    detail = (
        f"nothing of this stream was read for {slow_client.SLOW_CLIENT_TIMEOUT_S:g} s, so it ends here; open it again "
        "with the id of the last event as Last-Event-ID, and read metrics and logs since then from /metrics and /logs"
    )
    return server_sent("dropped", {"code": "slow_client", "retryable": True, "detail": detail})
