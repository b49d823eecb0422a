"""Events of a batch: to the tenant's feed, and to the webhook endpoints that want them."""

from enum import StrEnum

from sqlalchemy.orm import Session

from penstock.batches.documents import batch_document
from penstock.batches.models import Batch
from penstock.batches.progress import progress_of
from penstock.events.services import publish
from penstock.logs import get_logger
from penstock.webhooks.queueing import Owed, tell_endpoints

log = get_logger(__name__)


class BatchEvent(StrEnum):
    """What can happen to a batch."""

    CREATED = "batch.created"
    IN_PROGRESS = "batch.in_progress"
    PAUSED = "batch.paused"
    RESUMED = "batch.resumed"
    FINALIZING = "batch.finalizing"
    COMPLETED = "batch.completed"
    FAILED = "batch.failed"
    EXPIRED = "batch.expired"
    CANCELLING = "batch.cancelling"
    CANCELLED = "batch.cancelled"


def tell(session: Session, batch: Batch, event: BatchEvent) -> None:
    """Record the event of a batch whose row was just changed, in that transaction."""
    session.flush()
    session.refresh(batch)
    document = batch_document(batch, progress_of(session, batch))
    publish(session, tenant_id=batch.tenant_id, event_type=event.value, data=document)
    tell_endpoints(session, Owed(batch.tenant_id, event.value, document))
    log.info(event.value, batch=batch.id, settled=batch.settled, lines=batch.total_lines)
