"""The bodies of `POST /v1/jobs` for the kinds `quantize` and `evaluate`."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from penstock.clock import aware
from penstock.compressions.recipe import RecipeRequest
from penstock.errors import ValidationFailed
from penstock.jobs.schemas import JobWebhook, moment_in
from penstock.jobs.schemas import Tag as JobTag
from penstock.registry.registration import check_name
from penstock.strict_model import Strict, wrong_at

MOST_TEXTS: Final = 4096
Model = Annotated[str, Field(min_length=1, max_length=200, description="name, name@alias or name:version")]


class FromJobs(Strict):
    """What the model's succeeded jobs were asked and wrote, the newest first; those with tools are left out."""

    source: Literal["jobs"] = Field(alias="from")
    count: int = Field(default=64, ge=1, le=MOST_TEXTS, description="How many jobs")
    all_tenants: bool = Field(default=False, description="Jobs of every tenant; needs the scope operator")


class FromFile(Strict):
    """A file of JSON lines, each with `text`, or with `messages`, which the model's chat template renders."""

    source: Literal["file"] = Field(alias="from")
    file_id: str = Field(min_length=1, max_length=200)


def _source_of(given: object) -> str | None:
    source = given.get("from") if isinstance(given, dict) else getattr(given, "source", None)
    return f"({source})" if source in ("jobs", "file") else None


# Which of them was meant stands in parentheses, as no part of a field's place.
Texts = Annotated[
    Annotated[FromJobs, Tag("(jobs)")] | Annotated[FromFile, Tag("(file)")],
    Discriminator(
        _source_of, custom_error_type="no_source", custom_error_message="must be an object whose `from` is jobs or file"
    ),
]


def newest_jobs() -> FromJobs:
    """What is taken where nothing else is said."""
    return FromJobs.model_validate({"from": "jobs"})


class Evaluation(Strict):
    """How what was made is compared with what it was made of."""

    data: Texts | None = Field(
        default=None,
        description="Without it: of jobs, those after the ones that calibrate; of a file, its last fifth, which then "
        "calibrates nothing",
    )


class LaneRequest(Strict):
    """What both kinds have, as every job has it."""

    model: Model
    priority: int = Field(default=0, ge=-100, le=100, description="Higher goes first")
    deadline: datetime | None = Field(default=None, strict=False, description="RFC 3339; the job expires at it")
    webhook: JobWebhook | None = None
    tags: list[JobTag] = Field(default_factory=list, max_length=16)
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)

    @field_validator("deadline", mode="before")
    @classmethod
    def _a_moment(cls, deadline: object) -> object:
        return moment_in(deadline)

    @field_validator("deadline")
    @classmethod
    def _aware(cls, deadline: datetime | None) -> datetime | None:
        return aware(deadline) if deadline is not None else None


class QuantizeRequest(LaneRequest):
    """Make a smaller version of a model, and register it."""

    kind: Literal["quantize"]
    recipe: RecipeRequest
    calibration: Texts | None = Field(default=None, description="The newest 64 jobs, where the method needs text")
    evaluate: bool | Evaluation = Field(default=True, description="Compare it with the version that it is made of")
    name: str | None = Field(default=None, description="The registered model that it becomes a version of; the same")
    alias: Literal["challenger"] | None = Field(
        default=None, description="Give it this alias, so that jobs can be sent to it; needs the scope operator"
    )

    @field_validator("name")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        return None if name is None else _judged(check_name, name)

    @model_validator(mode="after")
    def _text_that_is_used(self) -> Self:
        if self.calibration is not None and not self.recipe.calibrated:
            raise wrong_at("calibration", f"must be left out: {self.recipe.method} needs no text")
        return self

    @model_validator(mode="after")
    def _of_the_same_tenants(self) -> Self:
        data = self.evaluation.data if self.evaluation is not None else None
        both = [texts.all_tenants for texts in (self.texts, data) if isinstance(texts, FromJobs)]
        if len(set(both)) > 1:
            raise wrong_at("evaluate", "must say the same of all_tenants as calibration")
        return self

    @property
    def texts(self) -> FromJobs | FromFile | None:
        """What calibrates; None where nothing does."""
        if not self.recipe.calibrated:
            return None
        return self.calibration or newest_jobs()

    @property
    def evaluation(self) -> Evaluation | None:
        """How it is to be compared; None when it is not."""
        if isinstance(self.evaluate, bool):
            return Evaluation() if self.evaluate else None
        return self.evaluate

    def stored(self) -> dict[str, Any]:
        """The request as the job's row keeps it."""
        return self.model_dump(mode="json", include={"recipe", "calibration", "evaluate", "name", "alias"})


class EvaluateRequest(LaneRequest):
    """Compare a version of a model with another one, by what both make of the same text."""

    kind: Literal["evaluate"]
    against: Model = Field(description="The version that it is compared with")
    data: Texts = Field(default_factory=newest_jobs)

    def stored(self) -> dict[str, Any]:
        """The request as the job's row keeps it."""
        return self.model_dump(mode="json", include={"against", "data"})


def asked_by(kind: str, stored: dict[str, Any], model: str, **others: Any) -> QuantizeRequest | EvaluateRequest:
    """The request of a job, from what its row keeps of it."""
    body = {"kind": kind, "model": model, **stored, **others}
    return QuantizeRequest.model_validate(body) if kind == "quantize" else EvaluateRequest.model_validate(body)


def _judged(check: Any, value: str) -> str:
    try:
        return str(check(value))
    except ValidationFailed as error:
        raise ValueError(error.message) from None
