"""Who calls, and what they may do.

A token is 256 random bits with a recognisable prefix; only its sha256 is stored. Every route
declares the role it needs in its OpenAPI extension `x-permission`; `guard` refuses a route that
declares none. On loopback, while no token was ever made, the caller is the local admin.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from fastapi import Request

from service.edge.problems import Problem
from service.errors import SettingsError
from service.ports import Role, Store, TokenRecord
from service.settings import Settings

__all__ = [
    "COOKIE",
    "PERMISSION",
    "PUBLIC",
    "Caller",
    "LoginRequired",
    "authenticate",
    "authenticate_secret",
    "ensure_guarded",
    "hash_secret",
    "needs",
    "new_secret",
    "permission_of",
    "secret_of",
]

COOKIE: Final = "simclr_token"
PERMISSION: Final = "x-permission"
PUBLIC: Final = "public"
BOOTSTRAP_ID: Final = "tok_bootstrap"
_RANKS: Final = {role: rank for rank, role in enumerate(Role)}


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who made a request."""

    owner: str
    role: Role
    token_id: str | None = None  # None: the local admin of an embedded service

    @property
    def sees(self) -> str | None:
        """Return whose experiments this caller sees; None is everyone's."""
        return None if self.role is Role.ADMIN else self.owner

    def may(self, role: Role) -> bool:
        """Return whether this caller has at least `role`."""
        return _RANKS[self.role] >= _RANKS[role]


class LoginRequired(Exception):
    """A browser asks for a page without a good token: it is shown the form."""


LOCAL_ADMIN: Final = Caller(owner="local", role=Role.ADMIN)


def needs(permission: Role | Literal["public"], **extension: Any) -> dict[str, Any]:
    """Return the OpenAPI extension by which a route declares the role it needs."""
    return {PERMISSION: str(permission), **extension}


def permission_of(route: Any) -> str | None:
    """Return what a route declares, None where it declares nothing that is known."""
    declared = (getattr(route, "openapi_extra", None) or {}).get(PERMISSION)
    return declared if declared in (PUBLIC, *Role) else None


def new_secret() -> str:
    """Return a new token's secret: 256 random bits."""
    return f"simclr_{secrets.token_urlsafe(32)}"


def hash_secret(secret: str) -> str:
    """Return the digest under which a secret is stored; at 256 bits no salt or stretching is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


async def authenticate(request: Request, *, store: Store, settings: Settings) -> Caller:
    """Return who calls.

    Raises:
        Problem: 401 if the token is missing, wrong, revoked or expired.
        StoreUnavailable: If the database cannot say.
    """
    secret = secret_of(request)
    if secret is None:
        if settings.is_loopback and settings.bootstrap_token is None and not await store.list_tokens():
            return LOCAL_ADMIN
        raise _unauthorized("send a token: Authorization: Bearer simclr_...")
    return await authenticate_secret(secret, store=store)


async def authenticate_secret(secret: str, *, store: Store) -> Caller:
    """Return whose secret this is. Raises as `authenticate` does."""
    token = await store.find_token(hash_secret(secret))
    if token is None or token.revoked_at is not None or _is_expired(token):
        raise _unauthorized("the token is wrong, revoked or expired")
    return Caller(owner=token.owner, role=token.role, token_id=token.id)


async def ensure_guarded(store: Store, settings: Settings) -> None:
    """Store the bootstrap token if one is set; refuse an open address that nothing guards.

    Raises:
        SettingsError: If others can reach the service and no token exists.
    """
    if settings.bootstrap_token is not None:
        digest = hash_secret(settings.bootstrap_token.get_secret_value())
        if await store.find_token(digest) is None:
            now = datetime.now(UTC)
            token = TokenRecord(
                id=f"{BOOTSTRAP_ID}_{digest[:12]}",
                name="bootstrap",
                owner="admin",
                role=Role.ADMIN,
                created_at=now,
                expires_at=None,
                revoked_at=None,
            )
            await store.create_token(token, digest)
    elif not settings.is_loopback and not await store.list_tokens():
        raise SettingsError(
            f"SIMCLR_HOST={settings.host} can be reached from other machines and no token exists; "
            "make one with `simclr token create`, set SIMCLR_BOOTSTRAP_TOKEN, or bind to 127.0.0.1"
        )


def secret_of(request: Request) -> str | None:
    """Return the secret that a request came with, unchecked; None where it has none."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme:
        return secret.strip() if scheme.lower() == "bearer" else ""
    return request.cookies.get(COOKIE)


def _is_expired(token: TokenRecord) -> bool:
    return token.expires_at is not None and token.expires_at <= datetime.now(UTC)


def _unauthorized(detail: str) -> Problem:
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="simclr"'})
