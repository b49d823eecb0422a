"""Trying a password, as the sign-in page does."""

from penstock.auth.services import admit, check_password, kept_password
from penstock.db import Database


def signs_in(database: Database, email: str, password: str) -> bool:
    """Whether this person gets in with this password."""
    with database.transaction() as session:
        kept = kept_password(session, email)
    keep = check_password(kept, password)
    if kept is None or keep is None:
        return False
    with database.transaction() as session:
        return admit(session, email, checked=kept, keep=keep) is not None
