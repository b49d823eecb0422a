"""Assignments: which arm of a rollout each job is on, and which users or tenants were counted.

Revision ID: 0019
Revises: 0018
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def _added() -> tuple[sa.Column, ...]:
    return (
        sa.Column("share", sa.Float(), server_default="0", nullable=False),
        sa.Column("unit", sa.Text(), server_default="job", nullable=False),
        sa.Column("stage_started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("thresholds", JSONB(), server_default="{}", nullable=False),
        sa.Column("judged_until", sa.DateTime(timezone=True), nullable=True),
    )


def upgrade() -> None:
    for column in _added():
        op.add_column("rollout", column)
    op.add_column("hosting", sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "assignment",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("job_id", "rollout_id", "stage")),
        sa.Column("step", sa.SmallInteger(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("share", sa.Float(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=True),
        sa.Column("assigned_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("seen", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("counted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("stage IN ('shadow', 'canary', 'ab')", name=op.f("ck_assignment_stage")),
        sa.CheckConstraint("arm IN ('champion', 'candidate')", name=op.f("ck_assignment_arm")),
        sa.CheckConstraint("(unit = 'job') = (key IS NULL)", name=op.f("ck_assignment_key_of_sticky")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_assignment_job_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_assignment_rollout_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_assignment")),
    )
    for name, missing in (("uncounted", "counted_at IS NULL"), ("unseen", "NOT seen")):
        columns = ["rollout_id", "job_id"]
        op.create_index(f"ix_assignment_{name}", "assignment", columns, postgresql_where=sa.text(missing))
    op.create_table(
        "assigned_unit",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("rollout_id", "stage", "key", "first_job")),
        sa.Column("candidate_step", sa.SmallInteger(), nullable=True),
        *(
            sa.Column(name, sa.Boolean(), server_default="false", nullable=False)
            for name in ("failed", "slow", "judged")
        ),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_assigned_unit_rollout_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "stage", "key", name=op.f("pk_assigned_unit")),
    )


def downgrade() -> None:
    for table in ("assigned_unit", "assignment"):
        op.drop_table(table)
    op.drop_column("hosting", "ready_at")
    for column in reversed(_added()):
        op.drop_column("rollout", column.name)
