"""the first schema"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "experiments",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("spec_digest", sa.Text(), nullable=False),
        sa.Column("exposure_window_us", sa.BigInteger(), nullable=False),
        sa.Column("tau2", sa.Text(), nullable=False),
        sa.Column("latches", sa.Text(), nullable=False),
        sa.Column("srm_log_e", sa.Float(), nullable=False),
        sa.Column("looks", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("step_started_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("watermark", sa.BigInteger(), nullable=True),
        sa.Column("pause_reason", sa.Text(), nullable=True),
        sa.Column("promoted_variant", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "idempotency",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_digest", sa.Text(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "interactions",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("event_id"),
    )
    with op.batch_alter_table("interactions", schema=None) as batch_op:
        batch_op.create_index("interactions_by_request", ["request_id"], unique=False)
        batch_op.create_index(
            "interactions_late",
            ["status"],
            unique=False,
            sqlite_where=sa.text("status = 'late'"),
            postgresql_where=sa.text("status = 'late'"),
        )
        batch_op.create_index(
            "interactions_pending",
            ["status"],
            unique=False,
            sqlite_where=sa.text("status = 'pending'"),
            postgresql_where=sa.text("status = 'pending'"),
        )

    op.create_table(
        "overrides",
        sa.Column("experiment", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("experiment", "user_id"),
    )
    op.create_table(
        "served",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("experiment", sa.Text(), nullable=True),
        sa.Column("run", sa.Integer(), nullable=True),
        sa.Column("arm", sa.Text(), nullable=True),
        sa.Column("bucket", sa.Float(), nullable=True),
        sa.Column("phase", sa.Integer(), nullable=True),
        sa.Column("served_variant", sa.Text(), nullable=False),
        sa.Column("table_version", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("fallback", sa.Text(), nullable=True),
        sa.Column("failed", sa.Boolean(), nullable=False),
        sa.Column("slow", sa.Boolean(), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("latency_ms", sa.Float(), nullable=False),
        sa.Column("received_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("request_id"),
    )
    with op.batch_alter_table("served", schema=None) as batch_op:
        batch_op.create_index("served_by_user", ["experiment", "run", "user_id"], unique=False)

    op.create_table(
        "user_totals",
        sa.Column("experiment", sa.Text(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("phase", sa.Integer(), nullable=False),
        sa.Column("exposed_at", sa.BigInteger(), nullable=False),
        sa.Column("closes_at", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("impressions", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("clicks", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("likes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("dismisses", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("slow", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("fallbacks", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("watch_s", sa.Float(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("experiment", "run", "user_id"),
    )
    with op.batch_alter_table("user_totals", schema=None) as batch_op:
        batch_op.create_index("user_totals_by_close", ["experiment", "run", "closes_at"], unique=False)

    op.create_table(
        "writers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("flushed_through", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("look", sa.Integer(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("state_before", sa.Text(), nullable=False),
        sa.Column("state_after", sa.Text(), nullable=False),
        sa.Column("step_before", sa.Integer(), nullable=False),
        sa.Column("step_after", sa.Integer(), nullable=False),
        sa.Column("reasons", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("spec_digest", sa.Text(), nullable=False),
        sa.Column("code_version", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["key"],
            ["experiments.key"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("decisions", schema=None) as batch_op:
        batch_op.create_index("decisions_by_run", ["key", "run", "id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("decisions", schema=None) as batch_op:
        batch_op.drop_index("decisions_by_run")

    op.drop_table("decisions")
    op.drop_table("writers")
    with op.batch_alter_table("user_totals", schema=None) as batch_op:
        batch_op.drop_index("user_totals_by_close")

    op.drop_table("user_totals")
    with op.batch_alter_table("served", schema=None) as batch_op:
        batch_op.drop_index("served_by_user")

    op.drop_table("served")
    op.drop_table("overrides")
    with op.batch_alter_table("interactions", schema=None) as batch_op:
        batch_op.drop_index(
            "interactions_pending",
            sqlite_where=sa.text("status = 'pending'"),
            postgresql_where=sa.text("status = 'pending'"),
        )
        batch_op.drop_index(
            "interactions_late", sqlite_where=sa.text("status = 'late'"), postgresql_where=sa.text("status = 'late'")
        )
        batch_op.drop_index("interactions_by_request")

    op.drop_table("interactions")
    op.drop_table("idempotency")
    op.drop_table("experiments")
    op.drop_table("counters")
