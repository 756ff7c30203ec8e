"""The outermost layer: every request passes it, and every failure leaves it as a problem document.

Checks what no route should have to think of: request id, Host (DNS rebinding), Origin (other
sites' pages), content type, body size, a last resort for exceptions, and safe response headers.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from ipaddress import ip_address
from time import perf_counter
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.edge.observability import RequestMetrics
from service.edge.problems import Problem, problem_response
from service.edge.slow_client import SLOW_CLIENT_TIMEOUT_S, SlowClient, connection_of
from service.settings import Settings

__all__ = ["LOGIN_PATH", "MAX_BODY_BYTES", "Edge"]

MAX_BODY_BYTES: Final = 64 * 1024
LOGIN_PATH: Final = "/ui/login"  # the one form; everything else is JSON
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
JSON_TYPES: Final = frozenset({"application/json", "application/merge-patch+json"})
FORM_TYPE: Final = "application/x-www-form-urlencoded"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}

log = structlog.get_logger("service.http")


class Edge:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, *, settings: Settings, metrics: RequestMetrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        names = {"localhost", "127.0.0.1", "::1", settings.host, *settings.allowed_hosts}
        self._hosts = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; lifespan messages pass untouched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        response = _Response(send, request_id)
        started = perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                if problem := self._refusal(scope, headers):
                    await self._answer(problem, scope, receive, response)
                else:
                    await self._app(scope, receive, response)
            except SlowClient:
                log.warning("slow_client_dropped", path=scope["path"], timeout_s=SLOW_CLIENT_TIMEOUT_S)
                if (connection := connection_of(scope)) is None:
                    raise
                connection.give_up()
            except Exception:  # the last resort: no trace may reach a client, whatever failed
                log.exception("unhandled_error", path=scope["path"])
                if not response.is_started:
                    detail = f"an unexpected error; quote request id {request_id} when you report it"
                    problem = Problem(500, "internal_error", detail, request_id=request_id)
                    await self._answer(problem, scope, receive, response)
            finally:
                self._metrics.observe(scope, status=response.status, duration_s=perf_counter() - started)

    @staticmethod
    async def _answer(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        await problem_response(problem, instance=scope["path"])(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        host = headers.get("host", "")
        if not self._is_known_host(host):
            return Problem(403, "host_not_allowed", "this Host is not served here; see SIMCLR_ALLOWED_HOSTS")
        if scope["method"] in SAFE_METHODS:
            return None
        return self._origin_refusal(headers, host) or _body_refusal(scope, headers)

    def _is_known_host(self, host: str) -> bool:
        name = _host_name(host)
        if name in self._hosts:
            return True
        # Rebinding needs a name; on an open address probes and people come by number.
        return not self._settings.is_loopback and _is_address(name)

    @staticmethod
    def _origin_refusal(headers: Headers, host: str) -> Problem | None:
        origin = headers.get("origin")
        if origin is None:
            # A browser that sends our cookie always says where the request comes from.
            if "cookie" in headers and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return Problem(403, "origin_not_allowed", "requests from other sites are refused")
            return None
        if origin.partition("://")[2].lower() != host.lower():
            return Problem(403, "origin_not_allowed", "requests from other sites are refused")
        return None


def _body_refusal(scope: Scope, headers: Headers) -> Problem | None:
    length = headers.get("content-length", "0")
    if not length.isdigit():
        return Problem(400, "content_length_invalid", "Content-Length is no number")
    if int(length) > MAX_BODY_BYTES:
        return body_too_large()
    has_body = int(length) > 0 or "transfer-encoding" in headers
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    allowed = {FORM_TYPE} if scope["path"] == LOGIN_PATH else JSON_TYPES
    if (has_body or content_type) and content_type not in allowed:
        return Problem(415, "content_type_unsupported", f"send {' or '.join(sorted(allowed))}")
    return None


def body_too_large() -> Problem:
    """Return the 413 of a body over the limit."""
    return Problem(413, "body_too_large", f"a body may have {MAX_BODY_BYTES} bytes", limit_bytes=MAX_BODY_BYTES)


class _Response:
    """`send` that adds headers, remembers the status and gives up on a client that does not read."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 500
        self.is_started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_started = True
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._request_id
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        try:
            async with asyncio.timeout(SLOW_CLIENT_TIMEOUT_S):
                await self._send(message)
        except TimeoutError as error:
            raise SlowClient from error


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _host_name(host: str) -> str:
    name = host.lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
