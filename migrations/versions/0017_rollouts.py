"""Rollouts: where each stands, how its gates stand, the ledger of its moves, and the lease of the one that judges.

Revision ID: 0017
Revises: 0016
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

STATES = "'registered', 'offline', 'shadow', 'canary', 'ab', 'promoted', 'paused', 'rejected', 'rolled_back', 'aborted'"
UNDER_WAY = "'registered', 'offline', 'shadow', 'canary', 'ab', 'paused'"


def upgrade() -> None:
    op.create_table(
        "rollout",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("id", "model_name", "candidate_id", "champion_id")),
        sa.Column("policy", JSONB(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("policy_version", "seed", "state")),
        sa.Column("step", sa.SmallInteger(), nullable=False),
        sa.Column("paused_in", sa.Text(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        *(
            sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
            for name in ("created_at", "entered_at")
        ),
        sa.CheckConstraint(f"state IN ({STATES})", name=op.f("ck_rollout_state")),
        sa.CheckConstraint(
            "(state = 'paused') = (paused_in IS NOT NULL)", name=op.f("ck_rollout_paused_in_with_paused")
        ),
        sa.CheckConstraint("candidate_id <> champion_id", name=op.f("ck_rollout_two_versions")),
        sa.ForeignKeyConstraint(["candidate_id"], ["deployment.id"], name=op.f("fk_rollout_candidate_id")),
        sa.ForeignKeyConstraint(["champion_id"], ["deployment.id"], name=op.f("fk_rollout_champion_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout")),
    )
    op.create_index(
        "uq_rollout_under_way",
        "rollout",
        ["model_name"],
        unique=True,
        postgresql_where=sa.text(f"state IN ({UNDER_WAY})"),
    )
    op.create_table(
        "gate_result",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("rollout_id", "state")),
        sa.Column("step", sa.SmallInteger(), nullable=False),
        *(sa.Column(name, JSONB(), nullable=False) for name in ("evidence", "judgement")),
        sa.Column("judged_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_gate_result_rollout_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "state", "step", name=op.f("pk_gate_result")),
    )
    _create_ledger()
    op.create_table(
        "controller_lease",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("name", "holder")),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_controller_lease")),
    )


def _create_ledger() -> None:
    op.create_table(
        "decision",
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("id", "rollout_id")),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("move", sa.Text(), nullable=False),
        sa.Column("from_state", sa.Text(), nullable=True),
        sa.Column("from_step", sa.SmallInteger(), nullable=True),
        sa.Column("to_state", sa.Text(), nullable=False),
        sa.Column("to_step", sa.SmallInteger(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("actor_kind", "actor_id", "actor_name")),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("policy_version", sa.Text(), nullable=False),
        *(sa.Column(name, JSONB(), nullable=True) for name in ("judgement", "evidence")),
        sa.Column(
            "decided_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_decision_rollout_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decision")),
    )
    op.create_index("ix_decision_rollout", "decision", ["rollout_id", "number"], unique=True)
    op.execute(
        """
        CREATE FUNCTION decision_stays() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'a decision stays as it was written' USING ERRCODE = 'check_violation';
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER decision_stays BEFORE UPDATE ON decision
        FOR EACH ROW EXECUTE FUNCTION decision_stays()
        """
    )


def downgrade() -> None:
    for table in ("controller_lease", "decision", "gate_result", "rollout"):
        op.drop_table(table)
    op.execute("DROP FUNCTION decision_stays()")
