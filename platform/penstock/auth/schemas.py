"""What the routes of keys, people, tenants and the record read. Unknown fields are refused."""

import re
from datetime import datetime
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from penstock.auth.audit import Action
from penstock.auth.services import Role, Scope
from penstock.clock import aware


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must hold printable characters alone")
    return text


def _an_address(text: str) -> str:
    if not _EMAIL.fullmatch(text) or not text.isprintable():
        raise ValueError("must be an email address, as in ann@example.com")
    return text


def _a_model(name: str) -> str:
    if "@" in name or ":" in name:
        raise ValueError("must be a model's name alone, which stands for all of its versions")
    return _one_line(name)


_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+")
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), AfterValidator(_one_line)]
Email = Annotated[str, StringConstraints(strip_whitespace=True, max_length=254), AfterValidator(_an_address)]
Password = Annotated[str, StringConstraints(min_length=12, max_length=256)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_a_model)]
Limit = Annotated[int, Field(ge=1, le=2**31 - 1)]
Days = Annotated[int, Field(ge=1, le=36_500)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class KeyRequest(_Body):
    """A key to make."""

    name: Name = Field(description="What it is for")
    scopes: list[Scope] = Field(default=[Scope.JOBS_READ, Scope.JOBS_WRITE], min_length=1)
    expires_at: Annotated[datetime, AfterValidator(aware)] | None = Field(
        default=None, strict=False, description="RFC 3339; it works for good without it"
    )
    models: list[ModelName] | None = Field(
        default=None, min_length=1, max_length=100, description="Names of the models that it may use; all without it"
    )


class UserRequest(_Body):
    """A person to let in."""

    email: Email
    role: Role = Role.MEMBER
    password: Password | None = Field(default=None, description="One is made and shown once without it")


class UserChangeRequest(_Body):
    """What becomes different of a person; what is left out stays."""

    role: Role | None = None
    password: Password | None = None
    disabled: bool | None = Field(default=None, description="Shut out, which ends every session, or let in again")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.role is None and self.password is None and self.disabled is None:
            raise ValueError("give at least one of role, password and disabled")
        return self


class TenantRequest(_Body):
    """A tenant to make. A limit that is null is the installation's."""

    name: Name
    weight: float = Field(default=1.0, gt=0, le=1e6, description="Its share of a busy worker beside other tenants'")
    max_queued_jobs: Limit | None = Field(default=None, description="Jobs that may wait at once")
    requests_per_minute: Limit | None = Field(default=None, description="Requests to the API")
    tokens_per_minute: Limit | None = Field(default=None, description="Tokens that submitted jobs may use")
    max_open_streams: Limit | None = Field(default=None, description="Streams that may be open at once")
    retain_jobs_days: Days | None = Field(default=None, description="Finished jobs and batches are kept so long")
    retain_events_days: Days | None = Field(default=None, description="Events of the feed")
    retain_deliveries_days: Days | None = Field(default=None, description="Deliveries of webhooks that have ended")
    retain_files_days: Days | None = Field(default=None, description="Files")
    retain_usage_days: Days | None = Field(default=None, description="Usage job by job; older usage is kept by the day")


class TenantChangeRequest(_Body):
    """What becomes different of a tenant; what is left out stays, and null is the installation's limit again."""

    name: Name = ""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    max_queued_jobs: Limit | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_open_streams: Limit | None = None
    retain_jobs_days: Days | None = None
    retain_events_days: Days | None = None
    retain_deliveries_days: Days | None = None
    retain_files_days: Days | None = None
    retain_usage_days: Days | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(f"give at least one of {', '.join(type(self).model_fields)}")
        return self

    def changes(self) -> dict[str, Any]:
        """The columns that were given."""
        return self.model_dump(exclude_unset=True)


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AuditQuery(_Query):
    """Which entries, and which page of them."""

    action: Action | None = None
    actor: str | None = Field(default=None, max_length=100, description="The id of the key, user or account that acted")
    target: str | None = Field(default=None, max_length=100, description="The id of what was changed")
    after: str | None = Field(default=None, pattern=r"^aud_[0-9a-z]{26}$", description="`next` of the page before")
    limit: int = Field(default=50, ge=1, le=100)


class OperatorAuditQuery(AuditQuery):
    """The same over all tenants, or one of them."""

    tenant: str | None = Field(default=None, max_length=100)
