"""Hold the transition table of job states in the database, and tell relays of new outbox messages.

Revision ID: 0002
Revises: 0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE FUNCTION job_guard_state() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (OLD.state, NEW.state) NOT IN (
                ('queued', 'running'), ('queued', 'cancelled'), ('queued', 'expired'), ('queued', 'failed'),
                ('running', 'queued'), ('running', 'succeeded'), ('running', 'failed'),
                ('running', 'cancelled'), ('running', 'expired')
            ) THEN
                RAISE EXCEPTION 'job % cannot go from % to %', OLD.id, OLD.state, NEW.state
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'job_state_transition';
            END IF;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER job_guard_state BEFORE UPDATE OF state ON job
        FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION job_guard_state()
        """
    )
    op.execute(
        """
        CREATE FUNCTION outbox_notify() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_notify('penstock_outbox', '');
            RETURN NULL;
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER outbox_notify AFTER INSERT ON outbox_message
        FOR EACH STATEMENT EXECUTE FUNCTION outbox_notify()
        """
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER outbox_notify ON outbox_message")
    op.execute("DROP FUNCTION outbox_notify()")
    op.execute("DROP TRIGGER job_guard_state ON job")
    op.execute("DROP FUNCTION job_guard_state()")
