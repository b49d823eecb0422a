"""What the routes of feedback read and answer."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from penstock.clock import iso
from penstock.feedback.models import Feedback

_AGAIN: Final = "Any unique text, such as a UUID: sent again with the same feedback, it is kept once"
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$")]


class FeedbackRequest(BaseModel):
    """A judgement: a score, a label, or both."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    score: float | None = Field(default=None, ge=0.0, le=1.0, description="0 is useless, 1 could not be better")
    label: Label | None = Field(default=None, description="A category of yours, such as `accepted`")
    comment: str | None = Field(default=None, min_length=1, max_length=4000)
    choice: int | None = Field(default=None, ge=0, description="Which choice it is about; the whole answer without it")
    user: str | None = Field(default=None, min_length=1, max_length=200, description="Who judges, as you call them")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.score is None and self.label is None:
            raise ValueError("give a score, a label, or both")
        return self


class FeedbackHeaders(BaseModel):
    """How to send it once."""

    idempotency_key: str | None = Field(default=None, description=_AGAIN)


class FeedbackAnswerHeaders(BaseModel):
    """Whether it had been kept before."""

    idempotent_replayed: str | None = Field(default=None, description="`true` where an earlier request has sent it")


class FeedbackQuery(BaseModel):
    """Which page."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = Field(default=None, pattern=r"^fbk_[0-9a-z]{26}$", description="`next` of the page before")
    limit: int = Field(default=50, ge=1, le=100)


class FeedbackDocument(BaseModel):
    """One judgement of a job's answer, with the version that gave the answer."""

    model_config = ConfigDict(extra="forbid")

    id: str
    object: Literal["feedback"]
    job_id: str
    choice: int | None
    score: float | None
    label: str | None
    comment: str | None
    user: str | None
    api_key_id: str = Field(description="The key that sent it, or the person who gave it in the portal")
    model_name: str
    model_version: str
    created_at: datetime


class FeedbackPage(BaseModel):
    """A page of feedback, oldest first."""

    model_config = ConfigDict(extra="forbid")

    object: Literal["list"]
    data: list[FeedbackDocument]
    has_more: bool
    next: str | None = Field(description="Give it as `after` to get the next page")


def feedback_document(feedback: Feedback) -> dict[str, Any]:
    """As `FeedbackDocument`."""
    return {
        "id": feedback.id,
        "object": "feedback",
        "job_id": feedback.job_id,
        "choice": feedback.choice,
        "score": feedback.score,
        "label": feedback.label,
        "comment": feedback.comment,
        "user": feedback.user,
        "api_key_id": feedback.api_key_id,
        "model_name": feedback.model_name,
        "model_version": feedback.model_version,
        "created_at": iso(feedback.created_at),
    }
