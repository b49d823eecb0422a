"""The tenant that owns what the platform itself runs: shadows, replays, evaluations of candidates.

It has no key and no people, stands in no list, and is neither billed nor told of: whoever lists, counts or bills
tenants leaves it out.
"""

from typing import Final

from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from penstock.auth.models import Tenant
from penstock.webhooks.signing import new_secret

SYSTEM_TENANT_ID: Final = "ten_system"


def ensure_system_tenant(session: Session) -> str:
    """Its id; it is there afterwards."""
    row = {
        "id": SYSTEM_TENANT_ID,
        "name": "(system)",
        "webhook_secret": new_secret(),
    }
    session.execute(upsert(Tenant).values(row).on_conflict_do_nothing())
    return SYSTEM_TENANT_ID
