"""Events of a bulk operation: to the tenant's feed, and to the webhook endpoints that want them."""

from enum import StrEnum

from sqlalchemy.orm import Session

from penstock.bulk.documents import bulk_document
from penstock.bulk.models import BulkOperation
from penstock.events.services import publish
from penstock.logs import get_logger
from penstock.webhooks.queueing import Owed, tell_endpoints

log = get_logger(__name__)


class BulkEvent(StrEnum):
    """What can happen to a bulk operation."""

    CREATED = "bulk.created"
    RUNNING = "bulk.running"
    COMPLETED = "bulk.completed"
    CANCELLED = "bulk.cancelled"


def tell(session: Session, operation: BulkOperation, event: BulkEvent) -> None:
    """Record the event of an operation whose row was just changed, in that transaction."""
    session.flush()
    session.refresh(operation)
    document = bulk_document(operation)
    publish(session, tenant_id=operation.tenant_id, event_type=event.value, data=document)
    tell_endpoints(session, Owed(operation.tenant_id, event.value, document))
    log.info(event.value, operation=operation.id, action=operation.action, total=operation.total)
