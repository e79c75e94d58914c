"""All settings of the service, read once by the command from `CROSSFADE_*` and passed down."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

HISTORY_LIMIT = 8192
"""What `history_max` may be raised to."""


class Settings(BaseSettings):
    """Where the service lives, what it talks to, and its limits. Every field is an environment variable, too.

    `home` holds what the service itself makes: secret, tokens.json, crossfade.db, spool/, checkpoints/, data/, logs/.
    """

    model_config = SettingsConfigDict(env_prefix="CROSSFADE_", frozen=True, extra="forbid")

    home: Path = Path(".crossfade")
    host: str = "127.0.0.1"
    port: int = Field(default=8700, ge=1, le=65535)
    database_url: str | None = Field(default=None, description="SQLAlchemy URL; SQLite in the home unless given")
    redis_url: str | None = Field(default=None, description="an embedded Valkey is started unless given")
    ray_metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="of Ray's own metrics under `crossfade up`; any unless given",
    )
    default_variant: str = "bf16"
    gateway_replicas: int = Field(default=1, ge=1)
    variant_replicas: int = Field(default=1, ge=1)
    variant_threads: int = Field(default=1, ge=1, description="torch threads of one replica")
    variant_gpus: float = Field(default=0.0, ge=0, description="GPUs of one replica; a share places several on one")
    variant_engine: bool = Field(default=True, description="on a GPU; off: the plain PyTorch model answers there, too")
    beam_width: int = Field(default=32, ge=1, description="prefixes that a replica's search keeps")
    batch_size: int = Field(default=8, ge=1)
    batch_wait_s: float = Field(default=0.005, ge=0)
    variant_timeout_s: float = Field(default=1.0, gt=0, description="of one call to an arm")
    answer_timeout_s: float = Field(default=2.5, gt=0, description="of an answer with its fallback")
    shadow_limit: int = Field(default=16, ge=0, description="slates of the other arm asked for at a time, by a gateway")
    table_poll_s: float = Field(default=0.5, gt=0)
    spool_max_bytes: int = Field(default=256 * 2**20, ge=2**16)
    spool_segment_bytes: int = Field(default=8 * 2**20, ge=2**12)
    flush_rows: int = Field(default=500, ge=1)
    log_slates: bool = Field(
        default=True,
        description="keep each request's history, liked items, profile and slate in the log, which `crossfade align` "
        "learns from; personal data of up to a few kB a request, in the spool and in SQL; false keeps none of it, from "
        "then on",
    )
    log_history: int = Field(
        default=512, ge=1, description="the newest items of a history, and of what is liked, that are kept in the log"
    )
    known_users: int = Field(default=200_000, ge=1, description="users whose arm one gateway remembers")
    history_max: int = Field(
        default=512, ge=0, le=HISTORY_LIMIT, description="items of one request, its history and liked ones"
    )
    request_max_bytes: int = Field(default=64 * 2**10, ge=1)
    events_max_bytes: int = Field(default=2**20, ge=1)

    @property
    def sql_url(self) -> str:
        """The database to use."""
        return self.database_url or f"sqlite:///{self.home.absolute() / 'crossfade.db'}"

    @property
    def spool_dir(self) -> Path:
        return self.home.absolute() / "spool"

    @property
    def secret_path(self) -> Path:
        return self.home.absolute() / "secret"

    @property
    def tokens_path(self) -> Path:
        return self.home.absolute() / "tokens.json"

    @property
    def variants_path(self) -> Path:
        return self.home.absolute() / "variants.json"

    @property
    def url(self) -> str:
        """Where the service answers; an IPv6 address stands in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"
