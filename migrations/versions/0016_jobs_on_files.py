"""Jobs that quantize and evaluate models: what they work on and what they made, and which workers do such work.

Revision ID: 0016
Revises: 0015
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "compression",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("model", JSONB(), nullable=False),
        *(sa.Column(name, JSONB(), nullable=True) for name in ("against", "made")),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=True),
        *(sa.Column(name, JSONB(), nullable=True) for name in ("published", "problem")),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_compression_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_compression")),
    )
    op.create_index(
        "ix_compression_unpublished",
        "compression",
        ["made_at"],
        postgresql_where=sa.text("made IS NOT NULL AND published IS NULL AND problem IS NULL"),
    )
    op.add_column("worker", sa.Column("file_jobs", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("worker", "file_jobs")
    op.drop_table("compression")
