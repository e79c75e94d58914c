"""what was given and what was shown, for post-training"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("served", schema=None) as batch_op:
        batch_op.add_column(sa.Column("history", sa.Text(), nullable=True))
        batch_op.add_column(sa.Column("slate", sa.Text(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("served", schema=None) as batch_op:
        batch_op.drop_column("slate")
        batch_op.drop_column("history")
