"""Signed request ids: any gateway can tell whether a click cites a request that was really served to this user.

`<uuid7>.<signature>`: the time-ordered uuid keeps inserts local in the database; the signature is HMAC-SHA256 over the
uuid and the user id, cut to 120 bits. So an unknown request is refused at the edge, without a look-up.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import uuid
from datetime import UTC, datetime
from pathlib import Path

from serving.errors import ConfigurationError, UnknownRequestError
from serving.private_file import create_once

_NAME = re.compile(r"[0-9a-f]{32}", re.ASCII)
_SIGNATURE_BYTES = 15
_SECRET_BYTES = 32


def uuid7(now: datetime, randomness: bytes) -> uuid.UUID:
    """A version 7 uuid (RFC 9562, section 5.7) from a time and 10 random bytes."""
    value = int(now.timestamp() * 1000) << 80 | int.from_bytes(randomness[:10], "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    return uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62)


class RequestSigner:
    """Issues and checks request ids; every gateway of a service shares the secret."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < _SECRET_BYTES:
            raise ConfigurationError(f"secret: needs at least {_SECRET_BYTES} bytes, got {len(secret)}")
        self._secret = secret

    def issue(self, user_id: str, now: datetime) -> str:
        """A fresh id for an answer to this user."""
        name = uuid7(now, secrets.token_bytes(10)).hex
        return f"{name}.{self._signature(name, user_id)}"

    def verify(self, request_id: str, user_id: str) -> datetime:
        """When the id was issued. Raises UnknownRequestError for any other text, or another user's id."""
        name, _, signature = request_id.partition(".")
        if not _NAME.fullmatch(name) or not hmac.compare_digest(
            _bytes(signature), _bytes(self._signature(name, user_id))
        ):
            raise UnknownRequestError("is not the id of a request that was served to this user")
        return datetime.fromtimestamp((uuid.UUID(name).int >> 80) / 1000, UTC)

    def _signature(self, name: str, user_id: str) -> str:
        mac = hmac.new(self._secret, _bytes(f"{name}\0{user_id}"), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(mac[:_SIGNATURE_BYTES]).decode()


def _bytes(text: str) -> bytes:
    """Of any text, half a surrogate pair included."""
    return text.encode("utf-8", "surrogatepass")


def load_secret(path: Path) -> bytes:
    """The service's secret, made at the first start and readable by its owner only."""
    if not path.exists():
        create_once(path, secrets.token_hex(_SECRET_BYTES))
    try:
        return bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError as error:
        raise ConfigurationError(f"{path}: is not a secret in hexadecimal; delete it to make a new one") from error
