"""One statement that deletes some rows of whatever table, passing over those that somebody else has locked."""

from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

ROWS_AT_ONCE: Final = 500


def delete_chunk(session: Session, table: str, column: str, value: str) -> int:
    """Delete up to `ROWS_AT_ONCE` rows whose column has that value; how many it were. Both names are the code's own."""
    chosen = f'SELECT ctid FROM "{table}" WHERE "{column}" = :value LIMIT :most FOR UPDATE SKIP LOCKED'  # noqa: S608  # names of tables
    gone = session.execute(
        text(f'DELETE FROM "{table}" WHERE ctid = ANY(ARRAY({chosen})) RETURNING 1'),  # noqa: S608  # as above
        {"value": value, "most": ROWS_AT_ONCE},
    )
    return len(gone.all())
