"""People who sign in through an identity provider, with or without a password of their own.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("user", "password_hash", nullable=True)
    op.add_column("user", sa.Column("oidc_issuer", sa.Text()))
    op.add_column("user", sa.Column("oidc_subject", sa.Text()))
    op.create_unique_constraint(op.f("uq_user_oidc_issuer_oidc_subject"), "user", ["oidc_issuer", "oidc_subject"])


def downgrade() -> None:
    op.drop_constraint(op.f("uq_user_oidc_issuer_oidc_subject"), "user", type_="unique")
    op.drop_column("user", "oidc_subject")
    op.drop_column("user", "oidc_issuer")
    op.execute("UPDATE \"user\" SET password_hash = '' WHERE password_hash IS NULL")  # which no password matches
    op.alter_column("user", "password_hash", nullable=False)
