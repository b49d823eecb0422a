"""What a tenant may use in a minute and at once.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_LIMITS = ("requests_per_minute", "tokens_per_minute", "max_open_streams")


def upgrade() -> None:
    for name in _LIMITS:
        op.add_column("tenant", sa.Column(name, sa.Integer()))


def downgrade() -> None:
    for name in _LIMITS:
        op.drop_column("tenant", name)
