"""The answers of the jobs' routes as Pydantic models: what the OpenAPI document says, held true by a test."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from penstock.jobs.states import JobState


class Document(BaseModel):
    """Exactly these members."""

    model_config = ConfigDict(extra="forbid")


class Alternative(Document):
    """A token that might have stood in a place, and its natural log-probability there."""

    token_id: int
    logprob: float


class TokenLogprob(Document):
    """A token, its natural log-probability (null for the first of a prompt), and the likeliest in its place."""

    token_id: int
    logprob: float | None
    top_logprobs: list[Alternative]


class CalledFunctionDocument(Document):
    """What is called. `arguments` is the text of a JSON object that satisfies the tool's schema, once it is whole."""

    name: str
    arguments: str


class ToolCallDocument(Document):
    """A call of one of the tools. Its `id` is the same wherever it is told."""

    id: str
    type: Literal["function"]
    function: CalledFunctionDocument


class CallDeltaFunction(Document):
    """The name comes once; the arguments piece by piece."""

    name: str | None = None
    arguments: str


class CallDelta(Document):
    """More of the choice's call of that index; the first brings the id."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CallDeltaFunction


class Choice(Document):
    """One generated answer. `finish_reason` is null while it is being generated; `tool_calls` after calls."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    logprobs: list[TokenLogprob] | None = Field(default=None, description="Beside `token_ids`, where asked for")
    tool_calls: list[ToolCallDocument] | None = Field(default=None, description="Beside `text`, where tools are called")


class Score(Document):
    """What the prompt's scored tokens come to together."""

    tokens: int = Field(description="How many were scored")
    logprob: float = Field(description="The natural log-probability of all of them, one after the other")


class Output(Document):
    """What was generated, so far or in the end."""

    choices: list[Choice]
    prompt_logprobs: list[TokenLogprob] | None = Field(default=None, description="The prompt's, where asked for")
    score: Score | None = Field(default=None, description="Their total")


class FiledOutput(Document):
    """Of a job that works on a model's files: the version that it made or judged, and what was found."""

    model: str
    version: str
    against: str | None = Field(description="The version that it is compared with, as name:version")
    created: bool = Field(description="False where the version was there before: of the same files, or only judged")
    source: str | None = Field(description="The folder of what was made")
    bytes: int | None = Field(description="Of the weights that were made")
    source_bytes: int | None = Field(description="Of the weights that they were made of")
    ratio: float | None = Field(description="The first by the second")
    recipe: dict[str, Any] | None
    figures: dict[str, Any] | None = Field(description="What the comparison found; null where none was asked for")
    run_id: str = Field(description="The MLflow run that holds the figures, linked to the version")


class Budget(Document):
    """What the job may cost; only what was asked for."""

    tokens: int | None = None
    amount: str | None = None
    currency: str | None = None


class JobError(BaseModel):
    """Why the job failed."""

    model_config = ConfigDict(extra="allow")

    code: str
    message: str


class Energy(Document):
    """What the device drew for the job's steps. Null where it was not measured, and `reason` says why."""

    joules: float | None
    reason: str | None


class Usage(Document):
    """Tokens. `cached_tokens` of the prompt's were not computed anew; `output_tokens` are those of all choices.

    What is null is counted when the job has ended.
    """

    prompt_tokens: int | None
    cached_tokens: int
    output_tokens: int
    computed_tokens: int | None = Field(description="Run through the model, in all runs")
    recomputed_tokens: int | None = Field(description="Of these, what the platform had to run again; not charged")
    device_seconds: float | None = Field(
        description="The job's share of the device's time: each step's, split by the tokens that ran in it"
    )
    recomputed_seconds: float | None = Field(description="Beside these, what the platform spent on it again")
    energy: Energy | None


class Cost(Document):
    """What the job cost, by the price that was in force when it was submitted."""

    amount: str = Field(description="Exact, as text")
    currency: str
    price: str = Field(description="The price's id")


class BatchPlace(Document):
    """The line of a batch that the job serves."""

    id: str
    line: int = Field(description="Its number in the input file, from 1")


class JobDocument(Document):
    """A job. Times are RFC 3339 in UTC."""

    id: str
    object: Literal["job"]
    kind: str
    status: JobState
    model: str = Field(description="As it was asked for")
    model_name: str
    model_version: str = Field(description="The version that serves it")
    routing: dict[str, Any] = Field(description="Why this version")
    input: dict[str, Any]
    params: dict[str, Any] = Field(description="With the seed, drawn at submission if none was given")
    job_class: Literal["interactive", "batch", "shadow"] = Field(alias="class")
    priority: int
    deadline: datetime | None
    budget: Budget | None
    tags: list[str]
    metadata: dict[str, str]
    webhook: dict[str, Any] | None
    retry_of: str | None
    batch: BatchPlace | None
    output: Output | FiledOutput | None
    error: JobError | None
    usage: Usage
    cost: Cost | None = Field(description="When it has ended; null where the version has no price")
    runs: int = Field(description="How often a worker has taken it")
    cancel_requested_at: datetime | None
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    first_token_at: datetime | None
    finished_at: datetime | None


class AheadDocument(Document):
    """Which jobs go before a waiting one. Other tenants' are counted only."""

    own: int
    others: int
    own_jobs: list[str] = Field(description="The first of your own, at most five")


class EtaDocument(Document):
    """When the answer should be there."""

    earliest: datetime
    latest: datetime
    coverage: float = Field(description="How likely it comes between the two, as things stand")
    based_on: int = Field(description="So many finished jobs of this version; few make the interval wide")


class QueueDocument(Document):
    """Where a waiting job stands."""

    position: int | None = Field(description="1 is the next that a worker takes; null while the job is held")
    position_is_exact: bool = Field(description="False where it was not counted to the end: that far back, or further")
    ahead: AheadDocument | None = Field(description="Null while it is held or not counted to the end")
    blocker: str = Field(description="What it waits for, in words")
    blocker_code: Literal[
        "tenant_suspended", "batch_paused", "no_worker", "load_failed", "loading", "cold", "draining", "slots_full",
        "doorbell",
    ]  # fmt: skip
    loading_progress: float | None = Field(description="0 to 1, while the version is loading")
    eta: EtaDocument | None
    eta_unknown: Literal["held", "not_served", "nothing_finished", "too_far_back"] | None = Field(
        description="Why there is no `eta`"
    )


class EventDocument(Document):
    """One state event. `number` counts within the job and is the same whichever door the event leaves by."""

    number: int
    type: str
    data: dict[str, Any]
    created_at: datetime


class RunDocument(Document):
    """One worker's turn at the job."""

    number: int
    worker: str
    started_at: datetime
    resumed_at_position: int = Field(description="The journal position it went on from")
    ended_at: datetime | None
    outcome: str | None
    reason: str | None
    queue_seconds: float | None = Field(description="Until the engine first ran it")
    prefill_seconds: float | None = Field(description="From there to its first token")
    decode_seconds: float | None = Field(description="From there to its last")
    computed_tokens: int
    recomputed_tokens: int
    device_seconds: float


class JobDetail(JobDocument):
    """A job with its history. While it runs, `output` is what has been generated so far."""

    queue: QueueDocument | None = Field(description="While it waits")
    timeline: list[EventDocument]
    run_history: list[RunDocument]


class JobPage(Document):
    """A page of jobs, newest first."""

    object: Literal["list"]
    data: list[JobDocument]
    has_more: bool
    next: str | None = Field(description="Give it as `after` to get the next page")


class FinalEvent(EventDocument):
    """The last event of a stream carries the finished job."""

    job: JobDocument


class OutputDelta(Document):
    """One journal entry: a token, the text that it completed (if any), or the end of its choice.

    With `prompt_logprobs` asked for, the first one holds those instead.
    """

    position: int = Field(description="Its place in the job's journal, from 0, over all choices")
    choice: int
    index: int = Field(description="Its place within its choice")
    token_id: int | None
    text: str
    logprob: float | None = None
    top_logprobs: list[Alternative] | None = None
    finish_reason: str | None = None
    tool_calls: list[CallDelta] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
