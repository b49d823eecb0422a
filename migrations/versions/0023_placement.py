"""Where deployments should be hosted: what operators want, and what workers say that they are.

Revision ID: 0023
Revises: 0022
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

STATES = "'loading', 'ready', 'failed', 'unloading'"


def upgrade() -> None:
    op.create_table(
        "placement",
        sa.Column("deployment_id", sa.Text(), nullable=False),
        sa.Column("workers", ARRAY(sa.Text()), nullable=True),
        sa.Column("replicas", sa.Integer(), nullable=True),
        sa.Column("kv_share", sa.Float(), nullable=True),
        sa.Column("mode", sa.Text(), server_default="warm", nullable=False),
        sa.Column("idle_seconds", sa.Float(), server_default="300", nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("mode IN ('warm', 'cold')", name=op.f("ck_placement_mode")),
        sa.CheckConstraint("replicas >= 0", name=op.f("ck_placement_replicas")),
        sa.CheckConstraint("kv_share > 0 AND kv_share <= 1", name=op.f("ck_placement_kv_share")),
        sa.ForeignKeyConstraint(
            ["deployment_id"], ["deployment.id"], name=op.f("fk_placement_deployment_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("deployment_id", name=op.f("pk_placement")),
    )
    op.add_column("worker", sa.Column("labels", ARRAY(sa.Text()), server_default="{}", nullable=False))
    op.add_column("worker", sa.Column("models", ARRAY(sa.Text()), nullable=True))
    op.drop_constraint(op.f("ck_hosting_state"), "hosting")
    op.create_check_constraint(op.f("ck_hosting_state"), "hosting", f"state IN ({STATES}, 'cold')")


def downgrade() -> None:
    op.execute("DELETE FROM hosting WHERE state = 'cold'")
    op.drop_constraint(op.f("ck_hosting_state"), "hosting")
    op.create_check_constraint(op.f("ck_hosting_state"), "hosting", f"state IN ({STATES})")
    op.drop_column("worker", "models")
    op.drop_column("worker", "labels")
    op.drop_table("placement")
