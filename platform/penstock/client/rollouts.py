"""`client.rollouts`: versions that earn their place, for operators' keys."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import quote
from uuid import uuid4

from penstock.client.documents import Document, parse
from penstock.client.jobs import given
from penstock.client.patience import Patience
from penstock.client.reading import Asking, Pages, Waiting
from penstock.client.transport import IDEMPOTENCY_HEADER

_ROLLOUTS: Final = "/v1/admin/rollouts"
_DECISIONS: Final = "/v1/admin/decisions"
_PAUSE_SECONDS: Final = 1.0
_ENDED: Final = frozenset({"promoted", "rejected", "rolled_back", "aborted"})


class RolloutVersion(Document):
    """One of a rollout's two versions, and the SHA-256 of the manifest of its files."""

    version: str
    deployment_id: str
    digest: str
    scheme: str


class RolloutReason(Document):
    """A guardrail's, or a condition's, part in a judgement."""

    name: str
    verdict: Literal["promote", "hold", "rollback"]
    text: str
    figures: dict[str, float]
    jobs_needed: int | None


class Judgement(Document):
    """A verdict with its reasons, those that decided it first."""

    verdict: Literal["promote", "hold", "rollback"]
    jobs_needed: int | None
    reasons: Sequence[RolloutReason]


class RolloutGate(Document):
    """What a gate has seen, its last judgement of that, and how that went."""

    status: str
    step: int
    title: str
    judged_at: datetime
    judgement: Judgement
    evidence: dict[str, Any]
    history: Sequence[dict[str, Any]]


class RolloutPlace(Document):
    """One of the positions that the policy leads through: `passed`, `here`, `ahead`, `stopped` or `not_reached`."""

    status: str
    step: int
    title: str
    share: float
    progress: str
    entered_at: datetime | None
    left_at: datetime | None


class Decision(Document):
    """One move in the ledger. `evidence`, from which it can be judged again, comes with `decisions`."""

    id: str
    rollout_id: str | None
    model: str
    number: int
    move: str
    from_status: str | None
    to_status: str | None
    from_version: str | None
    to_version: str | None
    actor: dict[str, str]
    reason: str | None
    policy_version: str | None
    judgement: Judgement | None
    artifacts: dict[str, Any]
    jobs: dict[str, Any]
    decided_at: datetime
    evidence: dict[str, Any] | None = None


class Rollout(Document):
    """A rollout at one moment. What has a default comes with `get` and `follow`; `decision` with a webhook."""

    id: str
    model: str
    candidate: RolloutVersion
    champion: RolloutVersion
    status: str
    step: int
    paused_in: str | None
    share: float
    note: str | None
    unit: str
    policy_version: str
    created_at: datetime
    stage_started_at: datetime
    entered_at: datetime
    finished_at: datetime | None
    policy: dict[str, Any] | None = None
    course: Sequence[RolloutPlace] = ()
    gates: Sequence[RolloutGate] = ()
    decisions: Sequence[Decision] = ()
    decision: Decision | None = None

    @property
    def finished(self) -> bool:
        """Whether it has ended; a promotion may yet be taken back."""
        return self.status in _ENDED


class RolloutPolicy(Document):
    """The policy of a model's rollouts; `number` 0 is the default one, which nobody set."""

    model: str
    number: int
    version: str
    policy: dict[str, Any]
    actor: dict[str, str] | None
    reason: str | None
    created_at: datetime | None


class Flip(Document):
    """An answer on which the versions differ: `parting` is where their first choices do, `worst` where they do most."""

    job: str
    tenant_id: str
    tokens: int
    mean_kld: float
    disagreement: float
    prompt_end: str
    parting: dict[str, Any] | None
    worst: dict[str, Any]


class RolloutPage(Document):
    """One page of a listing."""

    data: list[Rollout]
    has_more: bool
    next: str | None


class RolloutJob(Document):
    """One of the jobs that a rollout's decisions rest on: its arm, and what came of it."""

    job_id: str
    tenant_id: str
    arm: str | None
    stage: str | None
    step: int | None
    version: str
    status: str
    error: str | None
    rerouted: bool
    assigned_at: datetime | None
    counted_at: datetime | None
    finished_at: datetime | None


class RolloutJobPage(Document):
    """One page of a rollout's jobs."""

    data: list[RolloutJob]
    has_more: bool
    next: str | None


class DecisionPage(Document):
    """One page of the ledger."""

    data: list[Decision]
    has_more: bool
    next: str | None


class _Flips(Document):
    data: list[Flip]


class Rollouts:
    """Which version serves, and why. Every call takes the scope `operator`."""

    def __init__(self, transport: Asking, *, patience_seconds: float) -> None:
        self._transport, self._patience_seconds = transport, patience_seconds

    def start(
        self,
        model: str,
        version: str,
        *,
        policy: Mapping[str, Any] | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
    ) -> Rollout:
        """Let a version earn its place against the champion; by the model's own policy where none is given.

        Raises `ModelNotFound`, `ValidationFailed` and, while another rollout of the model is under way,
        `AlreadyExists`.
        """
        headers = {IDEMPOTENCY_HEADER: idempotency_key or str(uuid4())}
        body = given(model=model, version=version, policy=policy, reason=reason)
        return parse(Rollout, self._transport.request("POST", _ROLLOUTS, body=body, headers=headers))

    def get(self, rollout_id: str) -> Rollout:
        """The rollout with its course, gates and moves. Raises `NotFound`."""
        return parse(Rollout, self._transport.request("GET", _path(rollout_id)))

    def list(
        self, *, model: str | None = None, status: str | None = None, page_size: int | None = None
    ) -> Iterator[Rollout]:
        """All rollouts that match, newest first."""
        query = {"model": model, "status": status, "limit": page_size}
        return self._transport.pages(Pages(RolloutPage, _ROLLOUTS, query))

    def follow(self, rollout_id: str) -> Iterator[Rollout]:
        """The rollout as it stands, every second until it has ended. Outages are borne for `patience`."""
        return self._transport.follow(_RolloutWait(rollout_id), Patience(self._patience_seconds))

    def pause(self, rollout_id: str, reason: str) -> Rollout:
        """Send every new job to the champion until it is resumed. Raises `RolloutMoveRefused`, as all moves do."""
        return self._move(rollout_id, "pause", reason)

    def resume(self, rollout_id: str, reason: str) -> Rollout:
        """Go on where it was paused."""
        return self._move(rollout_id, "resume", reason)

    def abort(self, rollout_id: str, reason: str) -> Rollout:
        """End it without a verdict."""
        return self._move(rollout_id, "abort", reason)

    def roll_back(self, rollout_id: str, reason: str) -> Rollout:
        """Reject the candidate, or take it back; also after it was promoted."""
        return self._move(rollout_id, "rollback", reason)

    def promote(self, rollout_id: str, reason: str) -> Rollout:
        """Let it pass the gate, or the step, where it stands, whatever was proven."""
        return self._move(rollout_id, "promote", reason)

    def decisions(
        self, *, model: str | None = None, rollout_id: str | None = None, page_size: int | None = None
    ) -> Iterator[Decision]:
        """The ledger, newest first, with the evidence of each move."""
        query = {"model": model, "rollout": rollout_id, "limit": page_size}
        return self._transport.pages(Pages(DecisionPage, _DECISIONS, query))

    def flips(
        self,
        rollout_id: str,
        *,
        order: Literal["divergence", "disagreement", "newest"] | None = None,
        limit: int | None = None,
    ) -> Sequence[Flip]:
        """The answers on which the versions differ most. They hold customers' text; reading them is recorded."""
        query = given(order=order, limit=limit)
        return parse(_Flips, self._transport.request("GET", f"{_path(rollout_id)}/flips", query=query)).data

    def jobs(
        self,
        rollout_id: str,
        *,
        arm: Literal["champion", "candidate"] | None = None,
        status: str | None = None,
        rerouted: bool | None = None,
        page_size: int | None = None,
    ) -> Iterator[RolloutJob]:
        """The jobs that its decisions rest on, newest first. Raises `NotFound`."""
        query = {"arm": arm, "status": status, "rerouted": rerouted, "limit": page_size}
        return self._transport.pages(Pages(RolloutJobPage, f"{_path(rollout_id)}/jobs", query))

    def policy(self, model: str) -> RolloutPolicy:
        """The policy of the model's rollouts. Raises `ModelNotFound`."""
        return parse(RolloutPolicy, self._transport.request("GET", _policy_path(model)))

    def set_policy(self, model: str, policy: Mapping[str, Any], *, reason: str | None = None) -> RolloutPolicy:
        """Set it, for those that start from now on. Raises `ModelNotFound` and `ValidationFailed`."""
        body = {"policy": policy} | given(reason=reason)
        return parse(RolloutPolicy, self._transport.request("PUT", _policy_path(model), body=body))

    def simulate(
        self,
        effect: Mapping[str, float],
        *,
        policy: Mapping[str, Any] | None = None,
        model: str | None = None,
        champion_error: float | None = None,
        jobs: int | None = None,
        runs: int | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Rehearse rollouts, of a candidate without harm and of one with the effect; what becomes of them."""
        told = given(policy=policy, model=model, champion_error=champion_error, jobs=jobs, runs=runs, seed=seed)
        return self._transport.request("POST", f"{_ROLLOUTS}/simulate", body={"effect": effect} | told)

    def _move(self, rollout_id: str, name: str, reason: str) -> Rollout:
        return parse(Rollout, self._transport.request("POST", f"{_path(rollout_id)}/{name}", body={"reason": reason}))


class _RolloutWait(Waiting[Rollout]):
    """Looks at a rollout every second."""

    def __init__(self, rollout_id: str) -> None:
        self.path = _path(rollout_id)

    def take(self, answer: Mapping[str, Any], /) -> tuple[Rollout, float | None]:
        rollout = parse(Rollout, answer)
        return rollout, None if rollout.finished else _PAUSE_SECONDS


def _path(rollout_id: str) -> str:
    return f"{_ROLLOUTS}/{quote(rollout_id, safe='')}"


def _policy_path(model: str) -> str:
    return f"/v1/admin/models/{quote(model, safe='')}/policy"
