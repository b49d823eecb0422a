"""Rollouts: points of their gates for charts, the offline gate's evaluations, stored policies, and who started them.

Revision ID: 0018
Revises: 0017
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("rollout", sa.Column("started_by", sa.Text(), nullable=True))
    op.add_column("rollout", sa.Column("idempotency_key", sa.Text(), nullable=True))
    op.add_column("rollout", sa.Column("fingerprint", sa.LargeBinary(), nullable=True))
    op.create_foreign_key(
        op.f("fk_rollout_started_by"), "rollout", "tenant", ["started_by"], ["id"], ondelete="SET NULL"
    )
    op.create_unique_constraint(
        op.f("uq_rollout_started_by_idempotency_key"), "rollout", ["started_by", "idempotency_key"]
    )
    op.create_table(
        "gate_point",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("rollout_id", "state")),
        sa.Column("step", sa.SmallInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("jobs_needed", sa.Integer(), nullable=True),
        sa.Column("guards", JSONB(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_gate_point_rollout_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "state", "step", "at", name=op.f("pk_gate_point")),
    )
    op.create_table(
        "offline_evaluation",
        sa.Column("rollout_id", sa.Text(), nullable=False),
        sa.Column("number", sa.SmallInteger(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_offline_evaluation_rollout_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_offline_evaluation_job_id"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("rollout_id", "number", name=op.f("pk_offline_evaluation")),
    )
    op.create_index("ix_offline_evaluation_job_id", "offline_evaluation", ["job_id"])
    op.create_table(
        "rollout_policy",
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("policy", JSONB(), nullable=False),
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("policy_version", "actor_kind", "actor_id", "actor_name")
        ),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("model_name", "number", name=op.f("pk_rollout_policy")),
    )


def downgrade() -> None:
    for table in ("rollout_policy", "offline_evaluation", "gate_point"):
        op.drop_table(table)
    op.drop_constraint(op.f("uq_rollout_started_by_idempotency_key"), "rollout")
    op.drop_constraint(op.f("fk_rollout_started_by"), "rollout", type_="foreignkey")
    for column in ("fingerprint", "idempotency_key", "started_by"):
        op.drop_column("rollout", column)
