"""what a user likes and their profile, for post-training"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("served", schema=None) as batch_op:
        batch_op.add_column(sa.Column("liked", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("profile", sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("served", schema=None) as batch_op:
        batch_op.drop_column("profile")
        batch_op.drop_column("liked")
