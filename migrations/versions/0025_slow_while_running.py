"""A job is counted as slow once it has taken too long, and not only when it ends.

Revision ID: 0025
Revises: 0024
"""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("assignment", sa.Column("late", sa.Boolean(), server_default="false", nullable=False))


def downgrade() -> None:
    op.drop_column("assignment", "late")
