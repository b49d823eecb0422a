"""What a rollout's move means: the ledger's versions and jobs, aliases still to be written, versions kept warm.

Revision ID: 0020
Revises: 0019
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

NOT_OF_HAND_MOVES = ("rollout_id", "policy_version", "to_state", "to_step")


def upgrade() -> None:
    op.add_column("rollout", sa.Column("note", sa.Text(), nullable=True))
    op.add_column("rollout", sa.Column("told", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("routing_policy", sa.Column("alias_to", sa.Text(), nullable=True))
    op.add_column("deployment", sa.Column("keep_warm_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("job", sa.Column("void_to", sa.BigInteger(), server_default="0", nullable=False))
    _widen_ledger()


def _widen_ledger() -> None:
    op.add_column("decision", sa.Column("model_name", sa.Text(), server_default="", nullable=False))
    for name in ("from_version", "to_version"):
        op.add_column("decision", sa.Column(name, sa.Text(), nullable=True))
    for name in ("artifacts", "jobs"):
        op.add_column("decision", sa.Column(name, JSONB(), server_default="{}", nullable=False))
    for name in NOT_OF_HAND_MOVES:
        op.alter_column("decision", name, nullable=True)
    op.execute("ALTER TABLE decision DISABLE TRIGGER decision_stays")
    op.execute(
        "UPDATE decision SET model_name = rollout.model_name FROM rollout WHERE rollout.id = decision.rollout_id"
    )
    op.execute("ALTER TABLE decision ENABLE TRIGGER decision_stays")
    op.create_index(
        "ix_decision_by_hand",
        "decision",
        ["model_name", "number"],
        unique=True,
        postgresql_where=sa.text("rollout_id IS NULL"),
    )


def downgrade() -> None:
    op.execute("DELETE FROM decision WHERE rollout_id IS NULL")
    op.drop_index("ix_decision_by_hand", table_name="decision")
    for name in NOT_OF_HAND_MOVES:
        op.alter_column("decision", name, nullable=False)
    for name in ("jobs", "artifacts", "to_version", "from_version", "model_name"):
        op.drop_column("decision", name)
    op.drop_column("job", "void_to")
    op.drop_column("deployment", "keep_warm_until")
    op.drop_column("routing_policy", "alias_to")
    for name in ("told", "note"):
        op.drop_column("rollout", name)
