"""Every error that Penstock raises on purpose.

PenstockError
├── SettingsError                 an environment variable is wrong
├── ServiceUnavailable      503   PostgreSQL, Redis or MLflow does not answer
├── RequestError                  the caller can mend it
│   ├── InvalidJson         400   the body is not JSON
│   ├── ValidationFailed    422   a field is wrong
│   ├── ContextLengthExceeded 400 prompt and output do not fit the model
│   ├── Unauthenticated     401   no key, or a wrong one
│   ├── Forbidden           403   the key lacks a scope
│   │   ├── ModelNotAllowed 403   the key is for other models
│   │   └── TenantSuspended 403   the tenant is suspended, with its keys and people
│   ├── NotFound            404   no such thing for this tenant
│   │   └── ModelNotFound   404   no such model, version or alias
│   ├── MethodNotAllowed    405
│   ├── BudgetExceeded      402   the tenant's budget does not hold what the job may cost
│   ├── AlreadyExists       409   something has that name or address
│   ├── LastAdministrator   409   a tenant keeps somebody who administers it
│   ├── JobAlreadyFinished  409   a terminal state is final
│   ├── JobNotFinished      409   only a finished job can be retried or deleted
│   ├── JobStopped          409   the job that served the call was cancelled or expired
│   ├── IdempotencyKeyInUse 409   the first request with the key is being handled
│   ├── IdempotencyKeyReused 422  the key came with another request before
│   ├── AddressRefused      422   webhooks may not go to that address
│   ├── TooManyWebhookEndpoints 409 the tenant has as many as it may
│   ├── WebhookEndpointDisabled 409 nothing is replayed to a disabled endpoint
│   ├── WebhookDeliveryWaiting 409 only what has ended is replayed
│   ├── JobInBatch          409   files of a batch, or its end, need the job
│   ├── OwnTenant           409   nobody suspends the tenant that they act in
│   ├── TenantNotSuspended  409   only a suspended tenant is erased
│   ├── TenantBeingErased   409   what is being erased cannot be had back
│   ├── FileInUse           409   a batch reads the file
│   ├── BatchFinished       409   nothing is changed of a batch that ends or has ended
│   ├── NothingToRetry      409   no line of the batch can be tried again
│   ├── TooManyBulkOperations 409 the tenant has as many going as it may
│   ├── BulkOperationFinished 409 nothing is left of it to cancel
│   ├── TooManyReplays        409 as many go on as may
│   ├── ReplayFinished        409 nothing is left of it to cancel
│   ├── DeadLetterSettled   409   it was replayed or discarded before
│   ├── RolloutMoveRefused  409   where the rollout stands, that move is none
│   ├── BodyTooLarge        413
│   ├── UnsupportedMediaType 415
│   └── QuotaExceeded       429   the tenant's limit is reached
├── JobFailed               500   the job that served the call failed
├── IllegalTransition             a move of a job, or a rollout, that its table does not allow
├── LeaseLost                     another holder has the job, or it was finished
└── ModelFolderInvalid            a model folder is missing, incomplete or altered
"""

from typing import Any, ClassVar


class PenstockError(Exception):
    """Base of them all.

    `code` is stable and for programs, `status` the HTTP status it leaves with, `field` the place at fault (dotted, as
    in the request body) and `extra` further members of the problem document.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Something went wrong on our side"

    def __init__(self, message: str, *, field: str | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.extra = extra

    def problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem document."""
        document: dict[str, Any] = {
            "type": f"https://penstock.dev/errors/{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.message,
        }
        if self.field is not None:
            document["field"] = self.field
        return document | self.extra


class SettingsError(PenstockError):
    """An environment variable is missing or wrong; the message names it."""

    code = "settings_invalid"
    title = "The settings are wrong"


class ServiceUnavailable(PenstockError):
    """PostgreSQL, Redis or MLflow does not answer; the message names which."""

    code = "service_unavailable"
    status = 503
    title = "A service behind the platform does not answer"


class RequestError(PenstockError):
    """The request can be mended by its sender."""

    code = "invalid_request"
    status = 400
    title = "The request is wrong"


class InvalidJson(RequestError):
    """The body is not a JSON object."""

    code = "invalid_json"
    title = "The body is not JSON"


class ValidationFailed(RequestError):
    """A field is unknown, missing or wrong. `extra["errors"]` lists every one with what would be right."""

    code = "validation_failed"
    status = 422
    title = "A field is wrong"


class ContextLengthExceeded(RequestError):
    """Prompt and requested output do not fit the model's context."""

    code = "context_length_exceeded"
    title = "The prompt does not fit the model"


class Unauthenticated(RequestError):
    """No API key was sent, or none that we know."""

    code = "unauthenticated"
    status = 401
    title = "A valid API key is needed"


class Forbidden(RequestError):
    """The key is known but lacks the scope."""

    code = "forbidden"
    status = 403
    title = "The key may not do this"


class ModelNotAllowed(Forbidden):
    """The key is for other models; `extra["allowed"]` lists them."""

    code = "model_not_allowed"
    title = "The key may not use this model"


class TenantSuspended(Forbidden):
    """An operator has suspended the tenant: its keys and people are refused until it is resumed."""

    code = "tenant_suspended"
    title = "The tenant is suspended"


class NotFound(RequestError):
    """Nothing of that id belongs to this tenant."""

    code = "not_found"
    status = 404
    title = "Not found"


class ModelNotFound(NotFound):
    """No model of that name, alias or version takes jobs."""

    code = "model_not_found"
    title = "No such model"


class MethodNotAllowed(RequestError):
    """The path exists, but not for this method."""

    code = "method_not_allowed"
    status = 405
    title = "Method not allowed"


class BudgetExceeded(RequestError):
    """The tenant's budget does not hold what the job may cost."""

    code = "budget_exceeded"
    status = 402
    title = "The budget is used up"


class AlreadyExists(RequestError):
    """Something has the name or address already."""

    code = "already_exists"
    status = 409
    title = "There is one already"


class LastAdministrator(RequestError):
    """Nobody would be left to administer the tenant."""

    code = "last_administrator"
    status = 409
    title = "The last administrator stays"


class JobAlreadyFinished(RequestError):
    """The job's state is final."""

    code = "job_already_finished"
    status = 409
    title = "The job has finished"


class JobNotFinished(RequestError):
    """The job still waits or runs; only a finished one can be submitted again."""

    code = "job_not_finished"
    status = 409
    title = "The job has not finished"


class JobStopped(RequestError):
    """The job that served an OpenAI call was cancelled, or expired, before it was through."""

    code = "job_stopped"
    status = 409
    title = "The job was stopped"


class JobFailed(PenstockError):
    """The job that served an OpenAI call failed; the message says why."""

    code = "job_failed"
    title = "The job failed"


class IdempotencyKeyInUse(RequestError):
    """The first request with this key is being handled; send it again for its answer."""

    code = "idempotency_key_in_use"
    status = 409
    title = "A request with this key is being handled"


class IdempotencyKeyReused(RequestError):
    """The key came with another request before."""

    code = "idempotency_key_reused"
    status = 422
    title = "The idempotency key was used for another request"


class AddressRefused(RequestError):
    """The webhook's address is one that webhooks may not go to; asking again would not change that."""

    code = "webhook_address_refused"
    status = 422
    title = "The webhook's address is refused"


class TooManyWebhookEndpoints(RequestError):
    """The tenant has as many webhook endpoints as it may."""

    code = "too_many_webhook_endpoints"
    status = 409
    title = "There are too many webhook endpoints"


class WebhookEndpointDisabled(RequestError):
    """The endpoint is disabled; the message says since what."""

    code = "webhook_endpoint_disabled"
    status = 409
    title = "The webhook endpoint is disabled"


class WebhookDeliveryWaiting(RequestError):
    """The delivery has not ended; its next attempt comes by itself."""

    code = "webhook_delivery_waiting"
    status = 409
    title = "The delivery is still being attempted"


class JobInBatch(RequestError):
    """The job is a line of a batch that has not ended, or whose files hold it too; `extra["files"]` names them."""

    code = "job_in_batch"
    status = 409
    title = "A batch holds the job"


class OwnTenant(RequestError):
    """Whoever suspends the tenant that they act in could not resume it."""

    code = "own_tenant"
    status = 409
    title = "It is your own tenant"


class TenantNotSuspended(RequestError):
    """Only a suspended tenant can be erased."""

    code = "tenant_not_suspended"
    status = 409
    title = "The tenant is not suspended"


class TenantBeingErased(RequestError):
    """The tenant is being erased, which nothing can undo."""

    code = "tenant_being_erased"
    status = 409
    title = "The tenant is being erased"


class FileInUse(RequestError):
    """A batch that has not ended reads the file; `extra["batch"]` names it."""

    code = "file_in_use"
    status = 409
    title = "The file is in use"


class BatchFinished(RequestError):
    """The batch ends, or has ended."""

    code = "batch_finished"
    status = 409
    title = "The batch has finished"


class NothingToRetry(RequestError):
    """No line of the batch has failed, expired or been cancelled, or none of those that were named."""

    code = "nothing_to_retry"
    status = 409
    title = "There is nothing to try again"


class TooManyBulkOperations(RequestError):
    """The tenant has as many bulk operations going as it may."""

    code = "too_many_bulk_operations"
    status = 409
    title = "There are too many bulk operations"


class BulkOperationFinished(RequestError):
    """The bulk operation is completed: nothing of it is left to cancel."""

    code = "bulk_operation_finished"
    status = 409
    title = "The bulk operation has finished"


class TooManyReplays(RequestError):
    """As many replays go on as may."""

    code = "too_many_replays"
    status = 409
    title = "There are too many replays"


class ReplayFinished(RequestError):
    """The replay is completed: nothing of it is left to cancel."""

    code = "replay_finished"
    status = 409
    title = "The replay has finished"


class DeadLetterSettled(RequestError):
    """The dead letter was replayed, or discarded, before; `extra["status_now"]` says which."""

    code = "dead_letter_settled"
    status = 409
    title = "The dead letter is settled"


class RolloutMoveRefused(RequestError):
    """Where the rollout stands, that move is none; `extra["state"]` says where that is."""

    code = "rollout_move_refused"
    status = 409
    title = "The rollout cannot make that move"


class BodyTooLarge(RequestError):
    """The body is over the limit."""

    code = "body_too_large"
    status = 413
    title = "The body is too large"


class UnsupportedMediaType(RequestError):
    """The body's content type is not one we read."""

    code = "unsupported_media_type"
    status = 415
    title = "The content type is not supported"


class QuotaExceeded(RequestError):
    """The tenant's limit is reached."""

    code = "quota_exceeded"
    status = 429
    title = "A limit is reached"


class IllegalTransition(PenstockError):
    """A job, or a rollout, was asked to move between states in a way that its table does not allow."""

    code = "illegal_transition"
    title = "There is no way to that state"


class LeaseLost(PenstockError):
    """The writer's fence is no longer the job's: another holder has it, or it has finished."""

    code = "lease_lost"
    title = "The lease on the job was lost"


class ModelFolderInvalid(PenstockError):
    """A model folder is missing, incomplete or not what was registered; the message names the file."""

    code = "model_folder_invalid"
    title = "The model folder is not usable"
