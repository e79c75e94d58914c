"""Bearer tokens with scopes. The service makes its own tokens at its first start and keeps them in its home."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from starlette.requests import Request

from serving.errors import ConfigurationError
from serving.private_file import create_once
from serving.problems import Problem
from serving.services import of_request


class Scope(StrEnum):
    """What a token may do. operate may also read; admin may do everything."""

    READ = "read"
    EVENTS = "events"
    OPERATE = "operate"
    ADMIN = "admin"


IMPLIED: Mapping[Scope, frozenset[Scope]] = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.EVENTS: frozenset({Scope.EVENTS}),
    Scope.OPERATE: frozenset({Scope.OPERATE, Scope.READ}),
    Scope.ADMIN: frozenset(Scope),
}

COOKIE = "crossfade_token"
"""Carries the token of a person who signed in to the page."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a name for the audit log, and what they may do."""

    name: str
    scopes: frozenset[Scope]


class Tokens:
    """Knows tokens by their digests only. `by_name` maps a token's name to (its secret, its scope)."""

    def __init__(self, by_name: Mapping[str, tuple[str, Scope]]) -> None:
        self._known = {_digest(token): Principal(name, IMPLIED[scope]) for name, (token, scope) in by_name.items()}

    def principal(self, token: str) -> Principal | None:
        """Whose token this is. The time that it takes tells nothing about the tokens."""
        digest, found = _digest(token), None
        for known, principal in self._known.items():
            if hmac.compare_digest(known, digest):
                found = principal
        return found


def load_tokens(path: Path) -> dict[str, tuple[str, Scope]]:
    """Read {name: {token, scope}}; made at first, readable by its owner only. Raises ConfigurationError."""
    if not path.exists():
        fresh = {scope.value: {"token": f"cf-{secrets.token_urlsafe(24)}", "scope": scope.value} for scope in Scope}
        create_once(path, json.dumps(fresh, indent=2))
    try:
        stored = json.loads(path.read_text())
        return {name: (_secret(entry["token"]), Scope(entry["scope"])) for name, entry in stored.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path}: expected {{name: {{token, scope}}}}: {error}") from error


def _secret(token: object) -> str:
    """The token itself; raises ValueError for what nobody can keep secret."""
    if not isinstance(token, str) or not token.strip():
        raise ValueError("a token is a text that is not blank")
    return token.strip()


def require(scope: str) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency: who asks, if they may. 401 without a valid token, 403 without the scope.

    A coroutine, as `services_of`: FastAPI would send a plain function to another thread for every request.
    """
    needed = Scope(scope)

    async def authorised(request: Request) -> Principal:
        principal = principal_of(request)
        if principal is None:
            raise Problem(
                401,
                "unauthenticated",
                "send a valid token as `Authorization: Bearer …`",
                headers={"WWW-Authenticate": 'Bearer realm="crossfade"'},
            )
        if needed not in principal.scopes:
            raise Problem(403, "forbidden", f"the token {principal.name!r} lacks the scope {needed.value!r}")
        return principal

    return authorised


def principal_of(request: Request) -> Principal | None:
    """Whose token a request carries, in the header or, from the page, in a cookie."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        token = request.cookies.get(COOKIE, "") if _from_our_page(request) else ""
    return of_request(request).tokens.principal(token.strip()) if token else None


def _from_our_page(request: Request) -> bool:
    """Whether a cookie may speak for its owner: another site's page must not act with it."""
    if request.method in {"GET", "HEAD"}:
        return True
    origin = request.headers.get("origin")
    return origin is not None and origin.partition("://")[2] == request.headers.get("host")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
