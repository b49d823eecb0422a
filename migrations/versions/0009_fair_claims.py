"""Fair claims: counters of tenants, what jobs were charged, how prompts begin, and indexes in the order of claims.

Revision ID: 0009
Revises: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0011"
branch_labels = None
depends_on = None

_CLAIMABLE = sa.text("state = 'queued' AND NOT held")


def upgrade() -> None:
    op.create_table(
        "fair_share",
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("deployment_id", sa.Text(), nullable=False),
        sa.Column("charged", sa.Float(), server_default="0", nullable=False),
        sa.Column("charged_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("charged >= 0 AND charged < 'Infinity'", name=op.f("ck_fair_share_charged")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name=op.f("fk_fair_share_tenant_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["deployment_id"], ["deployment.id"], name=op.f("fk_fair_share_deployment_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "deployment_id", name=op.f("pk_fair_share")),
    )
    op.add_column("job", sa.Column("prefix", sa.BigInteger(), nullable=True))
    op.add_column("job", sa.Column("charged", sa.BigInteger(), server_default="0", nullable=False))
    op.drop_index("ix_job_waiting", "job")
    in_lane = ["deadline", "queued_at", "id"]
    by_turn = ["deployment_id", "job_class", "tenant_id", sa.literal_column("priority DESC"), *in_lane]
    op.create_index("ix_job_waiting", "job", by_turn, postgresql_where=_CLAIMABLE)
    by_beginning = ["deployment_id", "tenant_id", "prefix", "job_class", "priority", *in_lane]
    op.create_index("ix_job_waiting_alike", "job", by_beginning, postgresql_where=_CLAIMABLE)
    running = sa.text("state = 'running'")
    op.create_index("ix_job_running", "job", ["deployment_id", "tenant_id"], postgresql_where=running)
    newest_first = ["deployment_id", sa.literal_column("finished_at DESC")]
    op.create_index("ix_job_succeeded", "job", newest_first, postgresql_where=sa.text("state = 'succeeded'"))


def downgrade() -> None:
    for name in ("ix_job_succeeded", "ix_job_running", "ix_job_waiting_alike", "ix_job_waiting"):
        op.drop_index(name, "job")
    in_order = ["deployment_id", "job_class", sa.literal_column("priority DESC"), "queued_at", "id"]
    op.create_index("ix_job_waiting", "job", in_order, postgresql_where=sa.text("state = 'queued'"))
    op.drop_column("job", "charged")
    op.drop_column("job", "prefix")
    op.drop_table("fair_share")
