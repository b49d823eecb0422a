"""The lead on a real PostgreSQL: one has it, it expires, and who lost it writes nothing."""

import pytest
from penstock.db import Database
from penstock.rollouts.lead import Lead, LeadLost, hold, release, renew, take
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

NAME = "test"


def taken(database: Database, holder: str, seconds: float = 600) -> Lead | None:
    with database.transaction() as session:
        return take(session, NAME, holder, seconds)


def expire(database: Database) -> None:
    with database.transaction() as session:
        session.execute(text("UPDATE controller_lease SET expires_at = clock_timestamp()"))


def test_one_leads_at_a_time(database: Database) -> None:
    lead = taken(database, "one")
    assert lead == Lead(NAME, 1)
    assert taken(database, "other") is None
    assert taken(database, "one") is None, "not even itself: it may have slept, and another may have led since"
    with database.transaction() as session:
        assert take(session, "something else", "other", 600) == Lead("something else", 1)


def test_a_lead_that_expired_is_lost_for_good(database: Database) -> None:
    lead = taken(database, "one")
    assert lead
    expire(database)
    for write in (hold, release):
        with pytest.raises(LeadLost), database.transaction() as session:
            write(session, lead)
    with pytest.raises(LeadLost), database.transaction() as session:
        renew(session, lead, 600)
    later = taken(database, "other")
    assert later == Lead(NAME, 2)
    with pytest.raises(LeadLost, match="its fence was 1"), database.transaction() as session:
        hold(session, lead)
    with database.transaction() as session:
        hold(session, later)


def test_a_lead_that_is_renewed_stays(database: Database) -> None:
    lead = taken(database, "one", seconds=0.0)
    assert lead
    with pytest.raises(LeadLost), database.transaction() as session:
        renew(session, lead, 600)
    lead = taken(database, "one", seconds=600)
    assert lead
    with database.transaction() as session:
        renew(session, lead, 1200)
        lasts = session.scalar(text("SELECT expires_at > clock_timestamp() + interval '900 s' FROM controller_lease"))
    assert lasts


def test_a_released_lead_is_there_at_once(database: Database) -> None:
    lead = taken(database, "one")
    assert lead
    with database.transaction() as session:
        release(session, lead)
    assert taken(database, "other") == Lead(NAME, 2)


def test_a_successor_waits_for_what_the_leader_is_writing(database: Database) -> None:
    """Its lease may end meanwhile: the transaction that holds it is finished first."""
    lead = taken(database, "one")
    assert lead
    with database.transaction() as leading:
        hold(leading, lead)
        with pytest.raises(OperationalError, match="lock timeout"):
            take_over(database)
    take_over(database)


def take_over(database: Database) -> None:
    """As `take` does once a lease has expired, without patience."""
    with database.transaction() as session:
        session.execute(text("SET LOCAL lock_timeout = '50ms'"))
        session.execute(text("UPDATE controller_lease SET fence = fence + 1"))
