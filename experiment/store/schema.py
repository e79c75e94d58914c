"""The tables. Times are UTC, in microseconds since 1970, so that SQLite and PostgreSQL compare them alike."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

metadata = sa.MetaData()

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def micros(time: datetime) -> int:
    """Whole microseconds since 1970 of an aware time."""
    return (time - _EPOCH) // _MICROSECOND


def moment(value: int | None) -> datetime | None:
    """Inverse of `micros`; None stays None."""
    return None if value is None else _EPOCH + timedelta(microseconds=value)


def _json(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


experiments = sa.Table(
    "experiments",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    _json("spec"),
    sa.Column("spec_digest", sa.Text, nullable=False),
    sa.Column("exposure_window_us", sa.BigInteger, nullable=False),
    _json("tau2"),
    _json("latches"),
    sa.Column("srm_log_e", sa.Float, nullable=False),
    sa.Column("looks", sa.Integer, nullable=False),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("started_at", sa.BigInteger),
    sa.Column("step_started_at", sa.BigInteger),
    sa.Column("ended_at", sa.BigInteger),
    sa.Column("watermark", sa.BigInteger),
    sa.Column("pause_reason", sa.Text),
    sa.Column("promoted_variant", sa.Text),
)

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.Text, sa.ForeignKey("experiments.key"), nullable=False),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("look", sa.Integer, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("state_before", sa.Text, nullable=False),
    sa.Column("state_after", sa.Text, nullable=False),
    sa.Column("step_before", sa.Integer, nullable=False),
    sa.Column("step_after", sa.Integer, nullable=False),
    _json("reasons"),
    _json("evidence"),
    sa.Column("spec_digest", sa.Text, nullable=False),
    sa.Column("code_version", sa.Text, nullable=False),
    sa.Index("decisions_by_run", "key", "run", "id"),
)

overrides = sa.Table(
    "overrides",
    metadata,
    sa.Column("experiment", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("arm", sa.Text, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("request_digest", sa.Text, nullable=False),
    _json("response"),
    sa.Column("at", sa.BigInteger, nullable=False),
)

counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
"""`routing_version`, and `duplicates`: records whose id was known already."""

writers = sa.Table(
    "writers",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("flushed_through", sa.BigInteger, nullable=False),
)

served = sa.Table(
    "served",
    metadata,
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("experiment", sa.Text),
    sa.Column("run", sa.Integer),
    sa.Column("arm", sa.Text),
    sa.Column("bucket", sa.Float),
    sa.Column("phase", sa.Integer),
    sa.Column("served_variant", sa.Text, nullable=False),
    sa.Column("table_version", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("fallback", sa.Text),
    sa.Column("failed", sa.Boolean, nullable=False),
    sa.Column("slow", sa.Boolean, nullable=False),
    sa.Column("forced", sa.Boolean, nullable=False),
    sa.Column("latency_ms", sa.Float, nullable=False),
    sa.Column("received_at", sa.BigInteger, nullable=False),
    sa.Column("history", sa.Text),
    sa.Column("slate", sa.Text),
    sa.Column("liked", sa.Text),
    sa.Column("profile", sa.Text),
    sa.Index("served_by_user", "experiment", "run", "user_id"),
)
"""history, slate, liked and profile (`slate_columns`) are JSON, NULL where nothing was logged. Only post-training reads
them: all other queries name their columns, so that these bytes stay where they are."""

_PENDING, _LATE = sa.text("status = 'pending'"), sa.text("status = 'late'")

interactions = sa.Table(
    "interactions",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("request_id", sa.Text, nullable=False),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("item_id", sa.Text, nullable=False),
    sa.Column("position", sa.Integer),
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("occurred_at", sa.BigInteger, nullable=False),
    sa.Column("received_at", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Index("interactions_by_request", "request_id"),
    sa.Index("interactions_pending", "status", sqlite_where=_PENDING, postgresql_where=_PENDING),
    sa.Index("interactions_late", "status", sqlite_where=_LATE, postgresql_where=_LATE),
)

_COUNTS = ("requests", "impressions", "clicks", "likes", "dismisses", "slow", "failed", "fallbacks")

user_totals = sa.Table(
    "user_totals",
    metadata,
    sa.Column("experiment", sa.Text, primary_key=True),
    sa.Column("run", sa.Integer, primary_key=True),
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("arm", sa.Text, nullable=False),
    sa.Column("phase", sa.Integer, nullable=False),
    sa.Column("exposed_at", sa.BigInteger, nullable=False),
    sa.Column("closes_at", sa.BigInteger, nullable=False),
    *(sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in _COUNTS),
    sa.Column("watch_s", sa.Float, nullable=False, server_default="0"),
    sa.Column("triggered", sa.SmallInteger),
    sa.Index("user_totals_by_close", "experiment", "run", "closes_at"),
)
"""One row per exposed user and run: the unit of analysis. closes_at: end of the exposure window.

triggered: 1 if the other arm's slate differed at the first request, 0 if not, NULL if they were not compared.
"""
