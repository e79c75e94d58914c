"""No request body above its path's limit reaches a parser, whether its length was announced or not."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.problems import problem_of


class BodyLimit:
    """ASGI middleware: 413 above `limits[path]` bytes, or above `default` elsewhere."""

    def __init__(self, app: ASGIApp, limits: Mapping[str, int], default: int) -> None:
        self._app, self._limits, self._default = app, limits, default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], self._default)
        if _announced(scope) > limit:
            await problem_of(_too_large(limit)).response()(scope, receive, send)
        else:
            await self._app(scope, _counted(receive, limit), send)


def _announced(scope: Scope) -> int:
    """Bytes; 0 where nothing sensible is announced, and everything beyond 18 digits is alike."""
    value = dict(scope["headers"]).get(b"content-length", b"0").lstrip(b"0")
    return int(value[:18]) if value.isdigit() else 0


def _counted(receive: Receive, limit: int) -> Receive:
    """Raises while the body is read, which is before anything of the answer is sent."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise _too_large(limit)
        return message

    return counted


def _too_large(limit: int) -> HTTPException:
    """The one kind of exception that FastAPI lets through while it parses a body."""
    return HTTPException(413, f"the body may have at most {limit:,} bytes")
