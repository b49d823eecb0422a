"""Feedback on jobs' answers, with the version that gave them.

Revision ID: 0015
Revises: 0014
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "feedback",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("choice", sa.SmallInteger(), nullable=True),
        sa.Column("score", sa.Float(), nullable=True),
        *(sa.Column(name, sa.Text(), nullable=True) for name in ("label", "comment", "user")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("api_key_id", "deployment_id")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("model_name", "model_version")),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("score BETWEEN 0 AND 1", name=op.f("ck_feedback_score")),
        sa.CheckConstraint("score IS NOT NULL OR label IS NOT NULL", name=op.f("ck_feedback_says_something")),
        sa.CheckConstraint(
            "(idempotency_key IS NULL) = (fingerprint IS NULL)", name=op.f("ck_feedback_key_with_fingerprint")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_feedback_tenant_id")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_feedback_job_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["deployment_id"], ["deployment.id"], name=op.f("fk_feedback_deployment_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback")),
    )
    op.create_index("ix_feedback_job", "feedback", ["job_id", "id"])
    op.create_index("ix_feedback_deployment", "feedback", ["deployment_id", "created_at"])
    op.create_index(
        "uq_feedback_idempotency_key",
        "feedback",
        ["tenant_id", "idempotency_key"],
        unique=True,
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("feedback")
