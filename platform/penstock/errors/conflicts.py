"""What is refused as things stand: the request is well made, and what it is about is in no state for it."""

from penstock.errors.base import RequestError


class Conflict(RequestError):
    """Base of them all."""

    status = 409


class AlreadyExists(Conflict):
    """Something has the name or address already."""

    code = "already_exists"
    title = "There is one already"


class LastAdministrator(Conflict):
    """Nobody would be left to administer the tenant."""

    code = "last_administrator"
    title = "The last administrator stays"


class JobAlreadyFinished(Conflict):
    """The job's state is final."""

    code = "job_already_finished"
    title = "The job has finished"


class JobNotFinished(Conflict):
    """The job still waits or runs; only a finished one can be submitted again."""

    code = "job_not_finished"
    title = "The job has not finished"


class JobStopped(Conflict):
    """The job that served an OpenAI call was cancelled, or expired, before it was through."""

    code = "job_stopped"
    title = "The job was stopped"


class IdempotencyKeyInUse(Conflict):
    """The first request with this key is being handled; send it again for its answer."""

    code = "idempotency_key_in_use"
    title = "A request with this key is being handled"


class TooManyWebhookEndpoints(Conflict):
    """The tenant has as many webhook endpoints as it may."""

    code = "too_many_webhook_endpoints"
    title = "There are too many webhook endpoints"


class WebhookEndpointDisabled(Conflict):
    """The endpoint is disabled; the message says since what."""

    code = "webhook_endpoint_disabled"
    title = "The webhook endpoint is disabled"


class WebhookDeliveryWaiting(Conflict):
    """The delivery has not ended; its next attempt comes by itself."""

    code = "webhook_delivery_waiting"
    title = "The delivery is still being attempted"


class JobInBatch(Conflict):
    """The job is a line of a batch that has not ended, or whose files hold it too; `extra["files"]` names them."""

    code = "job_in_batch"
    title = "A batch holds the job"


class OwnTenant(Conflict):
    """Whoever suspends the tenant that they act in could not resume it."""

    code = "own_tenant"
    title = "It is your own tenant"


class TenantNotSuspended(Conflict):
    """Only a suspended tenant can be erased."""

    code = "tenant_not_suspended"
    title = "The tenant is not suspended"


class TenantBeingErased(Conflict):
    """The tenant is being erased, which nothing can undo."""

    code = "tenant_being_erased"
    title = "The tenant is being erased"


class FileInUse(Conflict):
    """A batch that has not ended reads the file; `extra["batch"]` names it."""

    code = "file_in_use"
    title = "The file is in use"


class BatchFinished(Conflict):
    """The batch ends, or has ended."""

    code = "batch_finished"
    title = "The batch has finished"


class NothingToRetry(Conflict):
    """No line of the batch has failed, expired or been cancelled, or none of those that were named."""

    code = "nothing_to_retry"
    title = "There is nothing to try again"


class TooManyBulkOperations(Conflict):
    """The tenant has as many bulk operations going as it may."""

    code = "too_many_bulk_operations"
    title = "There are too many bulk operations"


class BulkOperationFinished(Conflict):
    """The bulk operation is completed: nothing of it is left to cancel."""

    code = "bulk_operation_finished"
    title = "The bulk operation has finished"


class TooManyReplays(Conflict):
    """As many replays go on as may."""

    code = "too_many_replays"
    title = "There are too many replays"


class ReplayFinished(Conflict):
    """The replay is completed: nothing of it is left to cancel."""

    code = "replay_finished"
    title = "The replay has finished"


class DeadLetterSettled(Conflict):
    """The dead letter was replayed, or discarded, before; `extra["status_now"]` says which."""

    code = "dead_letter_settled"
    title = "The dead letter is settled"


class RolloutMoveRefused(Conflict):
    """Where the rollout stands, that move is none; `extra["state"]` says where that is."""

    code = "rollout_move_refused"
    title = "The rollout cannot make that move"
