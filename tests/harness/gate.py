"""A way to an HTTP server on which one request can be stopped, so that who sent it hangs at that point."""

from __future__ import annotations

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self

import httpx2

__all__ = ["Gate"]

DEADLINE_S: Final = 60.0


class Gate:
    """Passes requests on to `target`, for the `with` block, but for those that are held."""

    def __init__(self, target: str) -> None:
        self._http = httpx2.Client(base_url=target, timeout=DEADLINE_S, trust_env=False)
        self._held: re.Pattern[str] | None = None
        self._changes = threading.Condition()
        self.reached: str | None = None  # the request that hangs
        pass_on = self._pass

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                pass_on(self)

            do_POST = do_PUT = do_GET  # noqa: N815 - the base's names

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        self._server.shutdown()
        self._server.server_close()
        self._http.close()

    def hold(self, pattern: str) -> None:
        """Stop every request from now on whose "METHOD path" matches; those that were stopped go on."""
        self._set(re.compile(pattern))

    def open(self) -> None:
        """Stop nothing any more."""
        self._set(None)

    def wait(self) -> str:
        """Return the first request that hangs, once one does."""
        with self._changes:
            if not self._changes.wait_for(lambda: self.reached is not None, DEADLINE_S):
                raise TimeoutError("no such request came")
            return str(self.reached)

    def _set(self, held: re.Pattern[str] | None) -> None:
        with self._changes:
            self._held, self.reached = held, None
            self._changes.notify_all()

    def _stop(self, request: str) -> None:
        """Return when the request may pass."""
        with self._changes:
            held = self._held
            if held is not None and held.fullmatch(request):
                self.reached = self.reached or request
                self._changes.notify_all()
                self._changes.wait_for(lambda: self._held is not held)

    def _pass(self, caller: BaseHTTPRequestHandler) -> None:
        body = caller.rfile.read(int(caller.headers.get("Content-Length") or 0))
        self._stop(f"{caller.command} {caller.path}")
        kind = {"Content-Type": caller.headers["Content-Type"]} if "Content-Type" in caller.headers else {}
        answer = self._http.request(caller.command, caller.path, content=body, headers=kind)
        with contextlib.suppress(OSError):  # who asked may be dead by now
            caller.send_response(answer.status_code)
            caller.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            caller.send_header("Content-Length", str(len(answer.content)))
            caller.end_headers()
            caller.wfile.write(answer.content)
