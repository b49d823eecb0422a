"""The base of all errors, and those that no caller can mend."""

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


class RequestError(PenstockError):
    """The request can be mended by its sender."""

    code = "invalid_request"
    status = 400
    title = "The request is wrong"


class SettingsError(PenstockError):
    """An environment variable is missing or wrong; the message names it."""

    code = "settings_invalid"
    title = "The settings are wrong"


class ServiceUnavailable(PenstockError):
    """PostgreSQL, Redis or MLflow does not answer; the message names which."""

    code = "service_unavailable"
    status = 503
    title = "A service behind the platform does not answer"


class JobFailed(PenstockError):
    """The job that served an OpenAI call failed; the message says why."""

    code = "job_failed"
    title = "The job failed"


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
