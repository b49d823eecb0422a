"""Crashes of engines that one job met alone are found at once: they break a rollout off.

Revision ID: 0021
Revises: 0020
"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("ix_job_run_crashed", "job_run", postgresql_concurrently=True, if_exists=True)
        op.create_index(
            "ix_job_run_crashed",
            "job_run",
            ["ended_at"],
            postgresql_concurrently=True,
            postgresql_where=sa.text("outcome = 'crashed_alone'"),
        )


def downgrade() -> None:
    op.drop_index("ix_job_run_crashed", "job_run")
