"""Tokens: make one, list them, revoke one."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Path, Response
from fastapi.responses import JSONResponse

from service.edge.auth import hash_secret, needs, new_secret
from service.edge.deps import Body, ServicesDep, api_router
from service.edge.problems import responses
from service.intake.submission import refuse
from service.intake.validation import check_fields
from service.ports import Role, TokenRecord
from service.schemas import NO_NUL, FieldProblem, Items, TokenCreated, TokenRequest, TokenView
from service.views.listing import DEFAULT_PAGE_SIZE, PageSize, PageToken, page_of_sequence

__all__ = ["router"]

router = api_router("tokens")


@router.post(
    "/tokens",
    operation_id="createToken",
    summary="Make a token",
    status_code=201,
    response_model=TokenCreated,
    responses=responses(408, 413, 415),
    openapi_extra=needs(
        Role.ADMIN,
        requestBody={
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/TokenRequest"},
                    "examples": {"submitter": {"value": {"name": "ci", "role": "submitter"}}},
                }
            },
        },
    ),
)
async def create(body: Body, services: ServicesDep) -> Response:
    """Make a token and return its secret, this once."""
    request, problems = check_fields(TokenRequest, body)
    now = datetime.now(UTC)
    expires_at = request.expires_at if request else None
    if expires_at is not None and expires_at <= now:
        detail = "expires_at: give a time to come"
        problems.append(FieldProblem(pointer="/expires_at", code="not_in_the_future", detail=detail))
    if request is None or problems:
        refuse(problems)
    secret, token_id = new_secret(), f"tok_{secrets.token_hex(8)}"
    token = TokenRecord(
        id=token_id,
        name=request.name,
        owner=request.owner or token_id,
        role=request.role,
        created_at=now,
        expires_at=expires_at,
        revoked_at=None,
    )
    await services.store.create_token(token, hash_secret(secret))
    view = TokenCreated(**TokenView.model_validate(token).model_dump(), token=secret)
    return JSONResponse(view.model_dump(mode="json"), status_code=201, headers={"Location": f"/tokens/{token_id}"})


@router.get("/tokens", operation_id="listTokens", summary="List the tokens", openapi_extra=needs(Role.ADMIN))
async def list_(
    services: ServicesDep, page_size: PageSize = DEFAULT_PAGE_SIZE, page_token: PageToken = ""
) -> Items[TokenView]:
    """Return every token, newest first, without its secret."""
    tokens = [TokenView.model_validate(token) for token in await services.store.list_tokens()]
    key = services.paging_key
    items, token = page_of_sequence(tokens, name="tokens", page_size=page_size, page_token=page_token, key=key)
    return Items(items=items, next_page_token=token)


@router.delete(
    "/tokens/{token_id}",
    operation_id="revokeToken",
    summary="Revoke a token",
    status_code=204,
    responses=responses(404),
    openapi_extra=needs(Role.ADMIN),
)
async def revoke(token_id: Annotated[str, Path(max_length=64, pattern=NO_NUL)], services: ServicesDep) -> Response:
    """Revoke a token at once; repeating is no error."""
    await services.store.revoke_token(token_id)
    return Response(status_code=204)
