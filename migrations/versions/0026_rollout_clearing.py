"""A rollout that has ended remembers whether jobs that wait for its candidate are still to be sent to the champion.

Revision ID: 0026
Revises: 0025
"""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

_ENDED_LATELY = """
    UPDATE rollout SET clearing = true
    WHERE state IN ('rejected', 'rolled_back', 'aborted') AND entered_at > now() - interval '10 minutes'
"""


def upgrade() -> None:
    op.add_column("rollout", sa.Column("clearing", sa.Boolean(), server_default="false", nullable=False))
    op.execute(_ENDED_LATELY)
    op.create_index("ix_rollout_clearing", "rollout", ["candidate_id"], postgresql_where=sa.text("clearing"))


def downgrade() -> None:
    op.drop_index("ix_rollout_clearing", "rollout")
    op.drop_column("rollout", "clearing")
