"""Every error that Penstock raises on purpose.

PenstockError
├── SettingsError                      an environment variable is wrong
├── ServiceUnavailable           503   PostgreSQL, Redis or MLflow does not answer
├── RequestError                       the caller can mend it
│   ├── InvalidJson              400   the body is not JSON
│   ├── ValidationFailed         422   a field is wrong
│   ├── ContextLengthExceeded    400   prompt and output do not fit the model
│   ├── Unauthenticated          401   no key, or a wrong one
│   ├── Forbidden                403   the key lacks a scope
│   │   ├── ModelNotAllowed      403   the key is for other models
│   │   └── TenantSuspended      403   the tenant is suspended, with its keys and people
│   ├── NotFound                 404   no such thing for this tenant
│   │   └── ModelNotFound        404   no such model, version or alias
│   ├── MethodNotAllowed         405
│   ├── BudgetExceeded           402   the tenant's budget does not hold what the job may cost
│   ├── IdempotencyKeyReused     422   the key came with another request before
│   ├── AddressRefused           422   webhooks may not go to that address
│   ├── BodyTooLarge             413
│   ├── UnsupportedMediaType     415
│   ├── QuotaExceeded            429   the tenant's limit is reached
│   └── Conflict                 409   as things stand, not now
│       ├── AlreadyExists              something has that name or address
│       ├── LastAdministrator          a tenant keeps somebody who administers it
│       ├── JobAlreadyFinished         a terminal state is final
│       ├── JobNotFinished             only a finished job can be retried or deleted
│       ├── JobStopped                 the job that served the call was cancelled or expired
│       ├── IdempotencyKeyInUse        the first request with the key is being handled
│       ├── TooManyWebhookEndpoints    the tenant has as many as it may
│       ├── WebhookEndpointDisabled    nothing is replayed to a disabled endpoint
│       ├── WebhookDeliveryWaiting     only what has ended is replayed
│       ├── JobInBatch                 files of a batch, or its end, need the job
│       ├── OwnTenant                  nobody suspends the tenant that they act in
│       ├── TenantNotSuspended         only a suspended tenant is erased
│       ├── TenantBeingErased          what is being erased cannot be had back
│       ├── FileInUse                  a batch reads the file
│       ├── BatchFinished              nothing is changed of a batch that ends or has ended
│       ├── NothingToRetry             no line of the batch can be tried again
│       ├── TooManyBulkOperations      the tenant has as many going as it may
│       ├── BulkOperationFinished      nothing is left of it to cancel
│       ├── TooManyReplays             as many go on as may
│       ├── ReplayFinished             nothing is left of it to cancel
│       ├── DeadLetterSettled          it was replayed or discarded before
│       └── RolloutMoveRefused         where the rollout stands, that move is none
├── JobFailed                    500   the job that served the call failed
├── IllegalTransition                  a move of a job, or a rollout, that its table does not allow
├── LeaseLost                          another holder has the job, or it was finished
└── ModelFolderInvalid                 a model folder is missing, incomplete or altered
"""

from penstock.errors.base import *  # noqa: F403 (the tree is these three modules)
from penstock.errors.conflicts import *  # noqa: F403
from penstock.errors.requests import *  # noqa: F403
