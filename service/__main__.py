"""`python -m service`: the HTTP service alone, over the addresses in its settings."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading

import structlog
import uvicorn
from pydantic import ValidationError

from service.app import build
from service.edge.auth import ensure_guarded
from service.edge.connection import HttpConnection
from service.edge.event_feed import EventFeed
from service.edge.observability import configure_logging
from service.embedded.processes import die_with_parent
from service.errors import ServiceError
from service.settings import Settings, wrong_settings

__all__ = ["main"]

MAX_REQUESTS = 2048  # at once; past these a client gets 503 instead of a place in a queue
KEEP_ALIVE_S = 15
GRACE_S = 5  # for answers under way
END_S = 25.0  # for all of it: past this a thread hangs in a call that nobody will answer


def main() -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    die_with_parent()
    configure_logging()
    log = structlog.get_logger("service")
    try:
        return asyncio.run(_serve(Settings()))
    except KeyboardInterrupt:
        return 0  # SIGINT, after everything was closed
    except ServiceError as error:
        log.error("refuses_to_start", code=error.code, reason=error.message)  # noqa: TRY400 - words for a person
    except ValidationError as error:
        log.error("refuses_to_start", code="settings_invalid", reason=wrong_settings(error))  # noqa: TRY400
    return 1


async def _serve(settings: Settings) -> int:
    app = build(settings)
    await ensure_guarded(app.state.services.store, settings)  # here, so that a refusal is words and no traceback
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        http=HttpConnection,
        limit_concurrency=MAX_REQUESTS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    server = _Server(config, feed=app.state.services.feed)
    _keep_for_good()
    await server.serve()
    return 0 if server.started else 1


def _keep_for_good() -> None:
    """Spare the garbage collector all that was loaded: going through it took 42 ms in which nobody is answered."""
    gc.collect()
    gc.freeze()


class _Server(uvicorn.Server):
    """A server that ends event streams first: they would hold it up until they are cut."""

    def __init__(self, config: uvicorn.Config, *, feed: EventFeed) -> None:
        super().__init__(config)
        self._feed = feed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _end_in_time()
        self._feed.close()
        await super().shutdown(sockets)


def _end_in_time() -> None:
    """See that the process ends: Python waits for its threads, however long, and would be killed without a word."""
    timer = threading.Timer(END_S, _end_now)
    timer.daemon = True
    timer.start()


def _end_now() -> None:
    hanging = [each.name for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]
    structlog.get_logger("service").error("ended_without_waiting", threads=hanging, after_s=END_S)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
