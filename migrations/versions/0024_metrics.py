"""Metrics: points by minute and by hour, and how far they are written.

Revision ID: 0024
Revises: 0023
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "metric_point",
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("series", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("labels", JSONB(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.Float(), nullable=False) for name in ("total", "peak")),
        sa.Column("buckets", JSONB(), server_default="{}", nullable=False),
        sa.CheckConstraint("step IN (60, 3600)", name=op.f("ck_metric_point_step")),
        sa.PrimaryKeyConstraint("step", "series", "at", "labels", name=op.f("pk_metric_point")),
    )
    op.create_table(
        "metric_progress",
        sa.Column("name", sa.Text(), nullable=False),
        *(sa.Column(name, sa.DateTime(timezone=True), nullable=False) for name in ("since", "through")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_metric_progress")),
    )


def downgrade() -> None:
    op.drop_table("metric_progress")
    op.drop_table("metric_point")
