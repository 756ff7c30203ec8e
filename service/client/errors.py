"""The errors of the client.

ClientError         the service refused: `problem` is its RFC 9457 document, `status` the HTTP status
├── Unreachable     nothing answered in time, or nothing that can serve (status 0 or 5xx)
└── DigestMismatch  what arrived is not what the service announced
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx2

__all__ = ["ClientError", "DigestMismatch", "Unreachable", "error_of"]

_FIRST_SERVER_ERROR = 500


class ClientError(Exception):
    """A request that was refused; `problem` says why, field by field."""

    def __init__(self, problem: Mapping[str, Any], *, status: int = 0) -> None:
        self.problem = dict(problem)
        self.status = status
        super().__init__(str(self.problem.get("detail") or self.problem.get("title") or "the request failed"))

    @property
    def code(self) -> str:
        """Return the stable code of the problem."""
        return str(self.problem.get("code", "unknown"))

    @property
    def fields(self) -> list[Mapping[str, Any]]:
        """Return what is wrong field by field: pointer, code, detail, allowed."""
        return list(self.problem.get("errors") or ())


class Unreachable(ClientError):
    """No service answered, or it cannot serve now; trying again later may help."""


class DigestMismatch(ClientError):
    """The bytes that arrived are not those the service announced; nothing was saved."""


def error_of(response: httpx2.Response) -> ClientError:
    """Return the error in a response of 400 and above, whoever wrote it (a proxy may have)."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"title": response.reason_phrase, "detail": f"{response.url} answered {response.status_code}"}
    kind = Unreachable if response.status_code >= _FIRST_SERVER_ERROR else ClientError
    return kind(problem, status=response.status_code)
