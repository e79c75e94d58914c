"""whether a user's slate would have differed in the other arm"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("user_totals", schema=None) as batch_op:
        batch_op.add_column(sa.Column("triggered", sa.SmallInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("user_totals", schema=None) as batch_op:
        batch_op.drop_column("triggered")
