"""What is wrong with a request itself, or with who sends it."""

from penstock.errors.base import RequestError


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
