"""A job, its answer, and what the server tells of both."""

from datetime import datetime
from decimal import Decimal
from typing import Any

from pydantic import Field

from penstock.client.documents import Document
from penstock.jobs.states import JobState


class Alternative(Document):
    """A token that might have stood in a place, and its natural log probability there."""

    token_id: int
    logprob: float


class TokenLogprob(Document):
    """A token, its natural log probability (None for the first of a prompt), and the likeliest in its place."""

    token_id: int
    logprob: float | None
    top_logprobs: list[Alternative]


class CalledFunction(Document):
    """A tool's `name`, and its `arguments` as the text of a JSON object, which a cut may have left unfinished."""

    name: str
    arguments: str


class ToolCall(Document):
    """What the model called; `id` is what its result names."""

    id: str
    type: str
    function: CalledFunction


class Choice(Document):
    """One answer of the model. `finish_reason` is None while it goes on, and when it was cut short.

    `logprobs` stand beside `token_ids` where `params` asked for them, `tool_calls` where it called tools.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None
    logprobs: list[TokenLogprob] | None = None
    tool_calls: list[ToolCall] | None = None


class Score(Document):
    """What the scored tokens of a prompt come to: how many they are, and the natural log probability of all of them."""

    tokens: int
    logprob: float


class Output(Document):
    """What the model wrote. `prompt_logprobs` are those of the prompt's tokens, where `params` asked for them.

    Of `quantize` and `evaluate` there are no choices, but the `model` and `version` that was made or judged, and what
    was found: `figures`, and the `ratio` of `bytes` to `source_bytes`.
    """

    choices: list[Choice] = Field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] | None = None
    score: Score | None = None
    model: str | None = None
    version: str | None = None
    against: str | None = None
    created: bool | None = None
    source: str | None = None
    bytes: int | None = None
    source_bytes: int | None = None
    ratio: float | None = None
    recipe: dict[str, Any] | None = None
    figures: dict[str, Any] | None = None
    run_id: str | None = None


class Budget(Document):
    """What a job may cost, in tokens, in money, or both."""

    tokens: int | None = None
    amount: Decimal | None = None
    currency: str | None = None


class Energy(Document):
    """What the device drew for the job; `joules` is None where nothing measured it, and `reason` says why."""

    joules: float | None
    reason: str | None


class Usage(Document):
    """What the job consumed, in tokens, those of all choices together, and in seconds of the device.

    `cached_tokens` are those of the prompt that did not have to be computed. What is None is counted at the end.
    """

    prompt_tokens: int | None
    cached_tokens: int
    output_tokens: int
    computed_tokens: int | None = None
    recomputed_tokens: int | None = None
    device_seconds: float | None = None
    recomputed_seconds: float | None = None
    energy: Energy | None = None


class Cost(Document):
    """What the job cost, by the price that was in force when it was submitted."""

    amount: Decimal
    currency: str
    price: str


class JobError(Document):
    """Why a job failed."""

    code: str
    message: str


class Ahead(Document):
    """Which jobs go before a waiting one; of `own_jobs` the first five are named."""

    own: int
    others: int
    own_jobs: list[str]


class Eta(Document):
    """When the answer should be there: between the two with a chance of `coverage`, going by `based_on` jobs."""

    earliest: datetime
    latest: datetime
    coverage: float
    based_on: int


class Queue(Document):
    """Where a waiting job stands: `position` 1 is the next that a worker takes, `blocker` says what it waits for.

    `eta` is None where `eta_unknown` says why.
    """

    position: int | None
    position_is_exact: bool = True
    ahead: Ahead | None = None
    blocker: str
    blocker_code: str = ""
    loading_progress: float | None = None
    eta: Eta | None = None
    eta_unknown: str | None = None


class TimelineEvent(Document):
    """Something that happened to the job, numbered in its order."""

    number: int
    type: str
    data: dict[str, Any]
    created_at: datetime


class Run(Document):
    """One worker's turn at the job. `outcome` is None while it lasts."""

    number: int
    worker: str
    started_at: datetime
    resumed_at_position: int
    ended_at: datetime | None
    outcome: str | None
    reason: str | None
    queue_seconds: float | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None
    computed_tokens: int = 0
    recomputed_tokens: int = 0
    device_seconds: float = 0.0


class BatchPlace(Document):
    """The line of a batch that a job serves."""

    id: str
    line: int


class Job(Document):
    """A job as the server saw it at one moment; `queue`, `timeline` and `run_history` come with `get` and `wait`."""

    id: str
    kind: str
    status: JobState
    model: str
    model_name: str
    model_version: str
    routing: dict[str, Any]
    input: dict[str, Any]
    params: dict[str, Any]
    job_class: str = Field(alias="class")
    priority: int
    deadline: datetime | None
    budget: Budget | None = None
    tags: list[str]
    metadata: dict[str, str]
    webhook: dict[str, Any] | None
    retry_of: str | None
    batch: BatchPlace | None = None
    output: Output | None
    error: JobError | None
    usage: Usage
    cost: Cost | None = None
    runs: int
    cancel_requested_at: datetime | None
    created_at: datetime
    queued_at: datetime
    started_at: datetime | None
    first_token_at: datetime | None
    finished_at: datetime | None
    queue: Queue | None = None
    timeline: list[TimelineEvent] = Field(default_factory=list)
    run_history: list[Run] = Field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self.status.final

    @property
    def text(self) -> str:
        """The first choice's text so far, empty while there is none."""
        return self.output.choices[0].text if self.output and self.output.choices else ""

    @property
    def texts(self) -> list[str]:
        """Every choice's text so far."""
        return [choice.text for choice in self.output.choices] if self.output else []

    def to_json(self) -> str:
        """The job's document."""
        return self.model_dump_json(by_alias=True)


class Feedback(Document):
    """What somebody thinks of a job's answer, or of one `choice` of it; the version is the one that gave it."""

    id: str
    job_id: str
    choice: int | None
    score: float | None
    label: str | None
    comment: str | None
    user: str | None
    api_key_id: str
    model_name: str
    model_version: str
    created_at: datetime


class FeedbackPage(Document):
    """One page of a job's feedback."""

    data: list[Feedback]
    has_more: bool
    next: str | None


class JobPage(Document):
    """One page of a listing."""

    data: list[Job]
    has_more: bool
    next: str | None
